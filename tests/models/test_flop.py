"""The formula against what torch counts in a forward and backward through dense logits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

import wmtp_models.flop
from wmtp_models import MtpForCausalLM, add_adapters, flop_per_token, train_later_heads
from wmtp_models.heads import KINDS

S = 32
SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL |= dict.fromkeys(("bos_token_id", "eos_token_id"))
GATED = {**SMALL, "intermediate_size": 160, "num_key_value_heads": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
DEEPSEEK = {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen3": {**GATED, "head_dim": 24},
    "gpt2": SMALL,
    "gpt_neox": {**SMALL, "intermediate_size": 160},
    "mixtral": {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GATED, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "deepseek_v3": {**GATED, **LATENT, **DEEPSEEK, "moe_intermediate_size": 48, "num_key_value_heads": 4},
}
TRAIN: dict[str, Callable[[MtpForCausalLM], None]] = {
    "all": lambda policy: None,
    "heads": train_later_heads,
    "lora": lambda policy: add_adapters(policy, 4, 8),
}


def make(family: str = "llama", horizon: int = 3, kind: str = "layer", value_head: bool = False, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES.get(family, GATED), **changes})
    # transformers' grouped product of experts is not among those that torch counts.
    causal_lm = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    return MtpForCausalLM.wrap(causal_lm, horizon, head_kind=kind, value_head=value_head).train()


def counted(policy: MtpForCausalLM) -> float:
    """FLOP of a token: each head's logits by itself, as those of a frozen head 0 have no backward."""
    input_ids = torch.randint(96, (2, S))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        states = policy._forward_heads(input_ids, None)
        total = sum(policy.trunk.logits(state).square().sum() for state in states)
        if policy.value_head is not None:
            total = total + policy.value_head(states[0].detach()).sum()
        total.backward()
    return counter.get_total_flops() / input_ids.numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_cost_what_torch_counts(family: str) -> None:
    policy = make(family)
    assert flop_per_token(policy, S) == pytest.approx(counted(policy), rel=1e-6)


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_what_learns_cost_what_torch_counts(kind: str, train: str) -> None:
    policy = make(kind=kind)
    TRAIN[train](policy)
    # Of adapters in the first layer, where query, key and value need no gradient of their input, a little is too much.
    assert flop_per_token(policy, S) == pytest.approx(counted(policy), rel=0.02 if train == "lora" else 1e-6)


def test_a_plain_model_of_one_head_and_a_value_head() -> None:
    for policy in (make(horizon=1), make(horizon=2, value_head=True), make(tie_word_embeddings=True)):
        assert flop_per_token(policy, S) == pytest.approx(counted(policy), rel=1e-3)


def test_it_is_six_times_the_matrices_and_attention_as_palm_has_it() -> None:
    policy = make(horizon=1)
    matrices = sum(p.numel() for name, p in policy.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    assert flop_per_token(policy, 1000) == 6 * matrices + 12 * 4 * 4 * 16 * 1000  # layers, heads, size of a head, S


def test_a_window_is_all_that_a_token_sees() -> None:
    whole, windowed = make("mistral", sliding_window=None), make("mistral", sliding_window=10)
    assert flop_per_token(whole, S) - flop_per_token(windowed, S) == 12 * 6 * 4 * 16 * (S - 10)
    assert flop_per_token(whole, 8) == flop_per_token(windowed, 8)


def test_checkpointing_and_lying_in_parts_change_nothing() -> None:
    policy = make()
    expected = flop_per_token(policy, S)
    for parameter in policy.parameters():  # as DeepSpeed does
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert flop_per_token(policy, S) == expected


def test_what_a_configuration_does_not_say_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wmtp_models.flop, "_CHOSEN", ("no_such_key",))
    assert math.isnan(flop_per_token(make("mixtral"), S))
