"""Routers of mixtures of experts are trained as their own family trains them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, build_policy, checkpoint_activations
from wmtp_models.trunk.probe import require_wrappable
from wmtp_models.trunk.router_loss import find_router_loss

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Its coefficient has another name, and its attention has routers too.
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
}
ROUTERS_IN_A_LAYER = {"qwen3_moe": ["mlp.gate"], "mixtral": ["mlp.gate"], "jetmoe": ["experts.router", "mlp.router"]}


def is_router(family: str, name: str) -> bool:
    return any(f"{router}." in name for router in ROUTERS_IN_A_LAYER[family])


def make(family: str, coefficient: float = 0.5, **changes: object):
    torch.manual_seed(0)
    changes["aux_loss_coef" if family == "jetmoe" else "router_aux_loss_coef"] = coefficient
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(family, **{**SMALL, **special, **FAMILIES[family], **changes})
    return AutoModelForCausalLM.from_config(config).train()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_head_has_the_plain_models_loss_and_gradients(family: str, checkpointing: bool, input_ids: torch.Tensor):
    plain = make(family)
    expected = plain(input_ids, labels=input_ids, output_router_logits=True, use_cache=False)
    expected.loss.backward()
    policy = MtpForCausalLM.wrap(make(family), horizon=1)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    output = policy(input_ids)
    torch.testing.assert_close(output.auxiliary_loss, 0.5 * expected.aux_loss, rtol=1e-6, atol=1e-6)
    loss = output.ce.sum() / output.valid.sum() + output.auxiliary_loss
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in policy.causal_lm.named_parameters()}
    routers = [name for name in gradients if is_router(family, name)]
    assert len(routers) == 2 * len(ROUTERS_IN_A_LAYER[family])
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("head_kind", ["layer", "sequential"])
def test_what_a_backward_computes_again_is_not_noted(family: str, head_kind: str, input_ids: torch.Tensor):
    found = []
    for checkpointing in (False, True):
        policy = MtpForCausalLM.wrap(make(family), horizon=3, head_kind=head_kind)
        if checkpointing:
            checkpoint_activations(policy)
        with policy._capture_routers() as logits:
            states = policy._forward_heads(input_ids, None)
        noted = len(logits)
        (policy.router_loss(logits) + torch.stack(states).sum()).backward()
        found.append((noted, len(logits), logits, {n: p.grad for n, p in policy.named_parameters()}))
    (noted, after, logits, gradients), (*noted_again, logits_again, gradients_again) = found
    assert noted == after >= 4 * len(ROUTERS_IN_A_LAYER[family])
    assert noted_again == [noted, after]
    assert all(torch.equal(one, other) for one, other in zip(logits, logits_again, strict=True))
    for name, gradient in gradients.items():
        assert (gradient is None) or torch.equal(gradient, gradients_again[name]), name
    assert any(gradient is not None and gradient.any() for n, gradient in gradients.items() if is_router(family, n))


def test_padding_does_not_count(family: str, input_ids: torch.Tensor):
    mask = (torch.arange(12) < torch.tensor([[12], [5]])).long()  # [2, 12]
    plain = make(family)
    expected = plain(input_ids, attention_mask=mask, output_router_logits=True, use_cache=False).aux_loss
    policy = MtpForCausalLM.wrap(plain, horizon=1)
    torch.testing.assert_close(policy(input_ids, attention_mask=mask).auxiliary_loss, 0.5 * expected)
    assert (policy(input_ids).auxiliary_loss - 0.5 * expected).abs() > 1e-3


def test_routers_of_later_heads_count_too(family: str, input_ids: torch.Tensor):
    policy = MtpForCausalLM.wrap(make(family), horizon=3)
    policy(input_ids).auxiliary_loss.backward()
    reached = [n for n, p in policy.named_parameters() if is_router(family, n) and p.grad is not None and p.grad.any()]
    for place in ("heads.", "causal_lm."):  # two layers each
        assert sum(name.startswith(place) for name in reached) == 2 * len(ROUTERS_IN_A_LAYER[family])


def test_a_coefficient_of_0_and_a_dense_trunk_have_none(family: str, input_ids: torch.Tensor):
    assert MtpForCausalLM.wrap(make(family, 0.0))(input_ids).auxiliary_loss is None
    dense = build_policy({"model_type": "llama", **SMALL}, 64)
    assert dense(input_ids).auxiliary_loss is None


def test_no_hook_is_left(family: str, input_ids: torch.Tensor):
    policy = MtpForCausalLM.wrap(make(family), horizon=2)
    policy(input_ids)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())


def test_a_loss_of_other_arguments_is_refused():
    torch.manual_seed(0)
    config = AutoConfig.for_model("doge", **SMALL, is_moe=True, num_experts=16, num_experts_per_tok=2)
    with pytest.raises(UserError, match="DogeForCausalLM cannot be wrapped: it has an auxiliary loss of routers"):
        find_router_loss(AutoModelForCausalLM.from_config(config))
    config.is_moe = False
    assert find_router_loss(AutoModelForCausalLM.from_config(config)) is None


def test_a_loss_in_a_form_that_is_not_known_is_refused():
    causal_lm = make("mixtral")
    del causal_lm.num_experts
    with pytest.raises(UserError, match="MixtralForCausalLM cannot be wrapped: it has an auxiliary loss of routers"):
        require_wrappable(causal_lm)
