import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, add_adapters, load_policy, merge_adapters

Make = Callable[..., PreTrainedModel]
KINDS = ("layer", "sequential", "mlp")


def adapted(causal_lm: PreTrainedModel, kind: str, value_head: bool = False) -> MtpForCausalLM:
    torch.manual_seed(2)
    policy = MtpForCausalLM.wrap(causal_lm, 3, value_head=value_head, head_kind=kind)
    add_adapters(policy, rank=4, alpha=12)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing(kind: str, family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    before = MtpForCausalLM.wrap(make_causal_lm(family), 3, head_kind=kind).head_logits(input_ids)
    assert torch.equal(adapted(make_causal_lm(family), kind).head_logits(input_ids), before)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_heads_learn_and_nothing_else(kind: str, family: str, make_causal_lm: Make) -> None:
    policy = adapted(make_causal_lm(family), kind, value_head=True)
    below = (0, 1) if kind == "layer" else (0, 1, 2)  # of 3 layers
    for name, parameter in policy.named_parameters():
        in_trunk = any(f".{i}." in name.split("layers")[-1][:4] or f".h.{i}." in name for i in below)
        head = name.startswith(("heads.", "value_head."))
        head |= kind == "layer" and any(place in name for place in (".layers.2.", ".h.2."))  # head 0
        assert parameter.requires_grad == (head or ".lora_" in name), name
        assert not (".lora_" in name and (head or not in_trunk)), name
    adapters = [name for name, _ in policy.named_parameters() if ".lora_A." in name]
    matrices = [name for name, p in policy.named_parameters() if ".base_layer.weight" in name and p.ndim == 2]
    assert len(adapters) == len(matrices) >= 4 * len(below)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_a_plain_model_that_computes_the_same(
    kind: str, family: str, make_causal_lm: Make, input_ids: Tensor, tmp_path
) -> None:
    policy = adapted(make_causal_lm(family), kind)
    plain = MtpForCausalLM.wrap(make_causal_lm(family), 3, head_kind=kind)
    before = plain.head_logits(input_ids)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = policy.head_logits(input_ids)
    assert (expected - before).abs().max() > 0.1
    merged = merge_adapters(policy, dict(policy.state_dict()))
    plain.load_state_dict(merged)  # strict: every name, and no other
    torch.testing.assert_close(plain.head_logits(input_ids), expected, rtol=1e-4, atol=1e-4)
    policy.save_pretrained(tmp_path, state_dict=merged)
    saved = load_policy(tmp_path, 3, head_kind=kind).eval()
    assert torch.equal(saved.head_logits(input_ids), plain.head_logits(input_ids))


def test_adapters_are_multiplied_out_in_float32_and_rounded_once(make_causal_lm: Make) -> None:
    policy = adapted(make_causal_lm(), "layer").bfloat16()
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = dict(policy.state_dict())
    merged = merge_adapters(policy, state)
    name = next(
        name.removesuffix(".lora_A.default.weight") for name in state if name.endswith(".lora_A.default.weight")
    )
    weight, a, b = (state[f"{name}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default"))
    exact = weight.double() + 12 / 4 * (b.double() @ a.double())
    assert torch.equal(merged[f"{name}.weight"], exact.to(torch.bfloat16))


def test_without_adapters_the_weights_are_as_they_are(make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2)
    state = dict(policy.state_dict())
    merged = merge_adapters(policy, state)
    assert merged.keys() == state.keys()
    assert all(merged[name] is state[name] for name in state)


def test_gradients_reach_the_adapters(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = adapted(make_causal_lm(), "layer")
    policy(input_ids).ce.sum().backward()
    reached = {name: p.grad is not None and bool(p.grad.any()) for name, p in policy.named_parameters()}
    expected = [n for n in reached if ".lora_B." in n or (n.startswith("heads.") and "weight" in n)]
    assert any(name.startswith("heads.") for name in expected)
    assert all(reached[name] for name in expected)
    assert not any(reached[name] for name in reached if "base_layer" in name or "embed" in name or "lm_head" in name)


def test_a_trunk_without_linear_layers_is_refused(make_causal_lm: Make) -> None:
    with pytest.raises(UserError, match="below the heads there is no linear layer"):
        adapted(make_causal_lm(num_hidden_layers=1), "layer")


def test_a_missing_package_is_named(make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs the package peft: pip install peft"):
        adapted(make_causal_lm(), "layer")
