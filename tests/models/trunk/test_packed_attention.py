"""Losses and gradients are the same whatever computes attention."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attention_stand_ins import FLASH, stand_ins
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_models import MtpForCausalLM, ReferenceModel, generate, set_attention
from wmtp_models.trunk.packed_masks import FLEX
from wmtp_models.trunk.packing_layout import DocumentBounds

Make = Callable[..., PreTrainedModel]
LENGTHS = ([9, 1, 10, 4], [24], [3, 21])
GEMMA = {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "gpt2": {},
    "gpt_neox": {},
    "gemma2": {**GEMMA, "num_hidden_layers": 4, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "num_hidden_layers": 4},
}


@pytest.fixture(autouse=True)
def _stand_ins() -> Iterator[None]:
    torch._dynamo.reset()  # or flex attention, which it runs, is traced for any shape after some of them
    with stand_ins():
        yield


@pytest.fixture(params=[FLEX, FLASH])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def packed_rows(rows: int = 3) -> dict[str, Any]:
    lengths = [length for row in LENGTHS[:rows] for length in row]
    bounds = DocumentBounds(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths))
    return {
        "input_ids": torch.randint(64, (rows, 24), generator=torch.Generator().manual_seed(3)),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).view(rows, 24),
        "document_ids": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).view(rows, 24),
        "bounds": bounds,
    }


def losses_and_gradients(policy: MtpForCausalLM, **rows: Any) -> list[Tensor]:
    """The losses, the values, and the gradient of every parameter of a sum in which each loss has its own weight."""
    policy.zero_grad()
    output = policy(**rows)
    weights = torch.rand(output.ce.shape, generator=torch.Generator().manual_seed(5))
    total = (output.ce * weights).sum()
    if output.values is not None:
        total = total + (output.values * weights[..., 0]).sum()
    total.backward()
    found = [output.ce.detach()] + ([] if output.values is None else [output.values.detach()])
    return found + [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def assert_alike(policy: MtpForCausalLM, implementation: str, **rows: Any) -> None:
    expected = losses_and_gradients(policy, **rows)
    set_attention(policy, implementation)
    found = losses_and_gradients(policy, **rows)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert expected[0].mean() > 1


@pytest.mark.parametrize("family", list(SHAPES))
def test_families(family: str, implementation: str, make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(family, **SHAPES[family]), horizon=3)
    assert_alike(policy, implementation, **packed_rows())


@pytest.mark.parametrize("kind", ["layer", "sequential", "qwen2", "mlp", "linear"])
def test_kinds_of_heads(kind: str, implementation: str, make_causal_lm: Make) -> None:
    block = "qwen2" if kind == "qwen2" else "trunk"
    kind = "sequential" if kind == "qwen2" else kind
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, value_head=True, head_kind=kind, head_block=block)
    assert policy.value_head is not None
    policy.config.value_gradient_to_trunk = True
    torch.nn.init.normal_(policy.value_head.value.weight)
    assert_alike(policy, implementation, **packed_rows())


@pytest.mark.parametrize("told_by", ["position_ids", "document_ids", "nothing", "attention_mask"])
def test_rows_are_told_apart_without_bounds(told_by: str, implementation: str, make_causal_lm: Make) -> None:
    rows = packed_rows()
    told = {told_by: rows[told_by]} if told_by in rows else {}
    if told_by == "attention_mask":
        told = {told_by: (torch.arange(24) < torch.tensor([[24], [10], [17]])).long()}
    assert_alike(MtpForCausalLM.wrap(make_causal_lm("mistral")), implementation, input_ids=rows["input_ids"], **told)


def test_rows_of_one_document_and_padding(implementation: str, make_causal_lm: Make) -> None:
    mask = (torch.arange(24) < torch.tensor([[20], [11]])).long()
    rows = {
        "input_ids": packed_rows(2)["input_ids"],
        "position_ids": torch.stack([torch.cat([torch.arange(n), torch.arange(24 - n)]) for n in (20, 11)]),
        "document_ids": 1 - mask,
        "attention_mask": mask,
        "bounds": DocumentBounds(torch.tensor([0, 20, 24, 35, 48], dtype=torch.int32), 20),
    }
    assert_alike(MtpForCausalLM.wrap(make_causal_lm()), implementation, **rows)


def test_checkpointed_layers_are_recomputed_alike(implementation: str, make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm("qwen3")).train()
    set_attention(policy, implementation)
    expected = losses_and_gradients(policy, **packed_rows())
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(losses_and_gradients(policy, **packed_rows()), expected, strict=True):
        assert torch.equal(one, other)


def test_reference(implementation: str, make_causal_lm: Make) -> None:
    reference = ReferenceModel(make_causal_lm("mistral"))
    expected = reference.token_losses(**packed_rows())
    set_attention(reference, implementation)
    torch.testing.assert_close(reference.token_losses(**packed_rows()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_sdpa_computes_the_same_bits_with_bounds_as_without(rows: int, family: str, make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(family))
    packed = packed_rows(rows)
    with_bounds = losses_and_gradients(policy, **packed)
    del packed["bounds"]
    for one, other in zip(with_bounds, losses_and_gradients(policy, **packed), strict=True):
        assert torch.equal(one, other)
    whole = {"input_ids": packed["input_ids"], "position_ids": torch.arange(24).expand(rows, -1)}
    bounds = DocumentBounds(torch.arange(0, 24 * rows + 1, 24, dtype=torch.int32), 24)
    assert torch.equal(policy(**whole, bounds=bounds).ce, policy(**whole).ce)


def test_decoding_goes_on_with_a_cache(implementation: str, make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm())
    expected = generate(policy, [[1, 2, 3], [4]], 8).sequences
    set_attention(policy, implementation)
    assert generate(policy, [[1, 2, 3], [4]], 8).sequences == expected
    assert policy.causal_lm.config._attn_implementation == implementation
