"""A policy's losses and gradients on the device against the CPU's: kinds of heads, attention, compiled, with Liger."""

from typing import get_args

import pytest
import torch

from wmtp_core import GradientPlan, UniformWeighting, UserError, WeightingInputs, mtp_targets, weighted_mtp_loss
from wmtp_train.build_models import build_policy_from_settings
from wmtp_train.data.loading import TRAIN, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.settings.sections import ModelSettings

pytestmark = pytest.mark.cuda
OPTIONS = ModelSettings.model_fields  # some options came later than these tests
HEAD_KINDS = get_args(OPTIONS["head_kind"].annotation)
WAYS = [
    *({"attention": name} for name in (get_args(OPTIONS["attention"].annotation) if "attention" in OPTIONS else ())),
    *({name: True} for name in ("compile", "liger", "gradient_checkpointing") if name in OPTIONS),
]


@pytest.fixture
def losses_of(make_settings, processes, wide_llama):
    """Losses and gradients of a policy of these model settings on some device, in some dtype, on packed rows."""

    def losses(device, dtype, **model):
        settings = make_settings(algo="mtp-baseline", model={"config": wide_llama, **model}, data={"evaluate": {}})
        tokenizer = tokenizer_from_settings(settings)
        try:
            policy = build_policy_from_settings(settings, tokenizer, value_head=False)
        except UserError as reason:
            pytest.skip(str(reason))
        source = load_sources(data_spec(settings, tokenizer), processes)[TRAIN]
        batch = next(source.training_batches(processes, 4, 0, {})).to(device)
        policy = policy.to(device, dtype).train()
        valid = mtp_targets(batch.labels, 3, document_ids=batch.document_ids)[1]
        counts = valid.sum(dim=(0, 1))
        plan = UniformWeighting().plan(WeightingInputs(valid=valid, step=0, row_ids=batch.row_ids))
        output = policy(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            attention_mask=batch.attention_mask,
            plan=GradientPlan(plan, 1 / counts),
        )
        weighted_mtp_loss(output.ce, valid.float(), counts).backward()
        assert len(batch.document_ids.unique()) > 1
        gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        return output.ce, [gradients[name] for name in sorted(gradients)]

    return losses


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_kind_of_heads(device, losses_of, relative_error, kind):
    expected = losses_of(torch.device("cpu"), torch.float32, head_kind=kind)
    found = losses_of(device, torch.float32, head_kind=kind)
    low = losses_of(device, torch.bfloat16, head_kind=kind)
    for exact, full, half in zip(expected, found, low, strict=True):
        assert relative_error(full, exact) <= 1e-4
        assert relative_error(half, exact) <= 5e-2


@pytest.mark.parametrize("kind", ["layer", "sequential"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_run_it(device, losses_of, relative_error, way, kind):
    expected = losses_of(torch.device("cpu"), torch.float32, head_kind=kind)
    dtype = torch.bfloat16 if way.get("attention") in ("flash", "auto") else torch.float32  # flash has no other
    found = losses_of(device, dtype, head_kind=kind, **way)
    for exact, value in zip(expected, found, strict=True):
        assert relative_error(value, exact) <= (5e-2 if dtype == torch.bfloat16 else 1e-4)
