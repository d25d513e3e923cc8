"""Which attention a model gets, and what it is told when it cannot have what was asked for."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, choose_attention, set_attention
from wmtp_models.trunk import attention
from wmtp_models.trunk.packing_layout import DocumentBounds

Make = Callable[..., PreTrainedModel]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
WIDE = {"hidden_size": 64}  # heads of 16 dimensions
SINKS = {"hidden_size": 64, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}
CHUNKS = {**SINKS, "num_local_experts": 2, "attention_chunk_size": 6}


def install(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Tensor]) -> None:
    """Make packages of FlashAttention look installed on a Hopper GPU: `flash_attn`, `flash_attn_interface`."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: "flash_attn" in functions)
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: "flash_attn_interface" in functions)
    for name, function in functions.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(flash_attn_varlen_func=function))


def flash_2(q: Tensor, cu_seqlens_q: Tensor, dropout_p: float, softcap: float) -> Tensor: ...  # type: ignore[empty-body]
def flash_3(q: Tensor, cu_seqlens_q: Tensor) -> Tensor: ...  # type: ignore[empty-body]


def choose(causal_lm: PreTrainedModel, wanted: str = "auto", dtype: torch.dtype = torch.bfloat16) -> str:
    return choose_attention(causal_lm, True, wanted, CUDA, dtype).implementation


def refusal(causal_lm: PreTrainedModel, wanted: str, device: torch.device = CUDA, **how: Any) -> str:
    with pytest.raises(UserError, match=f"model.attention is {wanted}") as raised:
        choose_attention(causal_lm, how.get("isolates", True), wanted, device, how.get("dtype", torch.bfloat16))
    return str(raised.value)


def test_a_cpu_keeps_sdpa(make_causal_lm: Make) -> None:
    choice = choose_attention(make_causal_lm(), True, "auto", CPU, torch.float32)
    assert str(choice) == "attention: sdpa (what a cpu has)"
    assert "no backward on a cpu" in refusal(make_causal_lm(), "flex", CPU)
    assert "does not run on a cpu" in refusal(make_causal_lm(), "flash", CPU)


def test_auto_takes_the_best_that_is_there(make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    causal_lm = make_causal_lm(**WIDE)
    install(monkeypatch, flash_attn=flash_2, flash_attn_interface=flash_3)
    assert choose(causal_lm) == "flash_attention_3"
    assert choose(causal_lm, dtype=torch.float32) == "flex_attention"
    assert choose(causal_lm, "sdpa") == "sdpa"
    install(monkeypatch, flash_attn=flash_2)
    assert choose(causal_lm, "flash") == "flash_attention_2"
    install(monkeypatch)
    choice = choose_attention(causal_lm, True, "auto", CUDA, torch.bfloat16)
    assert choice.implementation == "flex_attention"
    assert "neither flash-attn nor flash-attn-3 is installed" in choice.reason
    assert choose(make_causal_lm()) == "sdpa", "heads of 8 dimensions"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gpt_neox", "gpt2", "gemma2", "gemma3_text"])
def test_families_that_hand_on_where_documents_begin(
    family: str, make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, flash_attn=flash_2)
    shape = {"head_dim": 16} if family in ("qwen3", "gemma2", "gemma3_text") else WIDE
    assert choose(make_causal_lm(family, **shape)) == "flash_attention_2"


@pytest.mark.parametrize(
    ("family", "shape", "wanted", "reason"),
    [
        ("llama", {**WIDE, "attention_dropout": 0.1}, "flex", "attention dropout"),
        ("gpt2", WIDE, "flash", "attention dropout"),
        ("gpt2", WIDE, "flex", "no flex_attention for the family"),
        ("gemma2", {"head_dim": 16}, "flash", "soft-caps"),
        ("gpt_oss", SINKS, "flash", "attention sinks"),
        ("gpt_oss", SINKS, "flex", "attention sinks"),
        ("llama4_text", CHUNKS, "flash", "no FlashAttention for the family"),
        ("llama", {"hidden_size": 4 * 320}, "flash", "320 dimensions"),
        ("llama", {}, "flex", "8 dimensions"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "flex", "transformers' attention interface|no flex_attention"),
    ],
)
def test_what_a_family_cannot_have(
    family: str, shape: dict[str, Any], wanted: str, reason: str, make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, flash_attn_interface=flash_3)
    causal_lm = make_causal_lm(family, **shape)
    message = refusal(causal_lm, wanted)
    assert any(part in message for part in reason.split("|")), message
    assert "set auto" in message
    assert choose(causal_lm) != {"flex": "flex_attention", "flash": "flash_attention_3"}[wanted]


def test_rows_that_would_mix_are_refused(make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, flash_attn=flash_2)
    causal_lm = make_causal_lm(**WIDE)
    assert "see each other" in refusal(causal_lm, "flash", isolates=False)
    assert "this is float32; set auto, flex or sdpa" in refusal(causal_lm, "flash", dtype=torch.float32)
    assert choose_attention(causal_lm, False, "auto", CUDA, torch.bfloat16).implementation == "sdpa"


def test_looking_leaves_the_model_and_transformers_alone(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm("gpt2", **WIDE).eval()
    before, known = causal_lm.config.to_dict(), set(ALL_ATTENTION_FUNCTIONS.keys())
    state = torch.random.get_rng_state()
    choose_attention(causal_lm, True, "auto", CUDA, torch.float32)
    assert causal_lm.config.to_dict() == before
    assert causal_lm.config._attn_implementation == "sdpa"
    assert not causal_lm.training
    assert set(ALL_ATTENTION_FUNCTIONS.keys()) == known
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("block", ["trunk", "qwen2"])
def test_it_reaches_every_layer_and_no_saved_file(block: str, make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), head_kind="sequential", head_block=block)
    saved = policy.config.to_json_string(), policy.causal_lm.config.to_json_string()
    set_attention(policy, "flash_attention_2")
    layers = [module for module in policy.modules() if type(module).__name__.endswith("Attention")]
    assert len(layers) == 4
    assert {layer.config._attn_implementation for layer in layers} == {"flash_attention_2"}
    assert (policy.config.to_json_string(), policy.causal_lm.config.to_json_string()) == saved
    assert "flash" not in "".join(saved)


class _NoWaits(TorchDispatchMode):
    """Refuses what a host would wait for an accelerator for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention", "flash_attention_2"])
def test_with_bounds_nothing_is_read_from_the_device(
    family: str, implementation: str, make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(_: nn.Module, query: Tensor, _key: Tensor, value: Tensor, *_args: Any, **_how: Any) -> Any:
        return query.transpose(1, 2) * value.mean(), None

    policy = MtpForCausalLM.wrap(make_causal_lm(family))
    set_attention(policy, implementation)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, implementation, attend)
    rows = {"input_ids": torch.arange(24).view(2, 12), "position_ids": torch.arange(6).repeat(2, 2)}
    bounds = DocumentBounds(torch.arange(0, 25, 6, dtype=torch.int32), 6)
    with torch.no_grad(), _NoWaits():
        policy._forward_heads(**rows, bounds=bounds)
        policy._forward_heads(rows["input_ids"], None)
        if implementation == "flex_attention":
            policy._forward_heads(**rows)
        else:  # without them it looks
            with pytest.raises(AssertionError, match=r"_local_scalar_dense|is_nonzero|nonzero"):
                policy._forward_heads(**rows)
