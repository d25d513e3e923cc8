"""Families that scale or soft-cap their logits: losses, gradients and text are the plain model's."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wmtp_core import LogitTransform, UserError
from wmtp_models import MtpForCausalLM, ReferenceModel, generate
from wmtp_models.formats import generic
from wmtp_models.trunk import logit_transform

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, tuple[dict[str, Any], LogitTransform]] = {
    "gemma2": ({"final_logit_softcapping": 2.0}, LogitTransform(softcap=2.0)),
    "gemma3_text": ({"final_logit_softcapping": 1.5}, LogitTransform(softcap=1.5)),
    "nanochat": ({"final_logit_softcapping": 1.0}, LogitTransform(softcap=1.0)),
    "cohere": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "cohere2": ({"logit_scale": 0.3}, LogitTransform(0.3)),
    "granite": ({"logits_scaling": 6.0}, LogitTransform(1 / 6)),
    "hyperclovax": ({"logits_scaling": 0.5}, LogitTransform(0.5)),
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(family: str) -> PreTrainedModel:
    """With weights large enough that a cap is felt."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family][0])).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def test_head_0_has_the_losses_and_gradients_of_the_plain_model(family: str, input_ids: torch.Tensor) -> None:
    model = build(family)
    logits = model(input_ids=input_ids, use_cache=False).logits.float()
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    weight = model.get_output_embeddings().weight
    (exact,) = torch.autograd.grad(expected, weight)
    policy = MtpForCausalLM.wrap(model, 3, head_kind="linear")
    assert policy.trunk.transform == FAMILIES[family][1]
    ce = policy(input_ids).ce
    (found,) = torch.autograd.grad(ce[:, :-1, 0].mean(), weight)
    torch.testing.assert_close(ce[:, :-1, 0].mean(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(policy.head_logits(input_ids)[:, :, 0], logits, rtol=1e-5, atol=1e-6)
    reference = ReferenceModel(model).token_losses(input_ids)
    torch.testing.assert_close(reference[:, 1:], ce[:, :-1, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "sequential"])
def test_text_is_the_plain_models(family: str, kind: str) -> None:
    model = build(family)
    policy = MtpForCausalLM.wrap(model, 3, head_kind=kind).eval()
    prompt = torch.tensor([[5, 6, 7, 8]])
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
    assert generate(policy, prompts=prompt.tolist(), max_new_tokens=12).sequences == plain.tolist()


def test_settings_that_the_model_does_not_follow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_transform, "_SCALES", ())
    with pytest.raises(UserError, match="its logits are not the product of final norm and output embedding"):
        MtpForCausalLM.wrap(build("cohere"), 2)


def test_servers_are_given_no_modules_of_such_a_trunk(tmp_path: Any) -> None:
    policy = MtpForCausalLM.wrap(build("nanochat"), 2, head_kind="sequential")
    with pytest.raises(UserError, match="neither scaled nor capped"):
        generic.save(policy, tmp_path)
