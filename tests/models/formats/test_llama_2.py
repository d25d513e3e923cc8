from pathlib import Path

import pytest
from transformers import LlamaConfig

from wmtp_core import UserError
from wmtp_models import MtpConfig
from wmtp_models.formats.llama_2 import hf_key_map, policy_config, require_params, to_params_json

PATH = Path("params.json")


def config(horizon: int = 4, **trunk: object) -> MtpConfig:
    return MtpConfig(trunk=LlamaConfig(**{"hidden_size": 32, "num_hidden_layers": 3, **trunk}), horizon=horizon)


def test_the_published_7b_model() -> None:
    params = {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-5, "n_future_tokens": 4}
    trunk = policy_config(params, vocab_size=32000).trunk
    assert (trunk.num_hidden_layers, trunk.intermediate_size, trunk.num_key_value_heads) == (29, 11008, 32)
    assert (trunk.bos_token_id, trunk.eos_token_id) == (None, None)
    assert (trunk.rms_norm_eps, trunk.vocab_size, trunk.rope_parameters["rope_theta"]) == (1e-5, 32000, 10000.0)
    assert to_params_json(policy_config(params, 32000)) == {**params, "vocab_size": 32000}


def test_published_params_are_taken() -> None:
    llama_2 = {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
    llama_2 |= {"n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1}
    require_params(llama_2, PATH)
    require_params({**llama_2, "n_kv_heads": None, "ffn_dim_multiplier": None, "rope_theta": 500000}, PATH)
    require_params(to_params_json(config(num_attention_heads=4)), PATH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scaled_rope": True}, r"has use_scaled_rope \(True\), which Llama 2 does not: convert"),
        ({"n_future_tokens": "2"}, "n_future_tokens is '2', not a whole number above 0"),
        ({"n_future_tokens": True}, "n_future_tokens is True, not a whole number"),
        ({"n_future_tokens": 4}, "n_future_tokens is 4 of 3 layers"),
        ({"multiple_of": 0}, "multiple_of is 0, not a whole number above 0"),
        ({"n_layers": 3.0}, "n_layers is 3.0, not a whole number"),
        ({"rope_theta": None}, "rope_theta is None, not a finite number above 0"),
        ({"norm_eps": "x"}, "norm_eps is 'x', not a finite number"),
        ({"norm_eps": float("nan")}, "norm_eps is nan, not a finite number"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier is inf, not a finite number"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"n_heads": 32}, "dim 32 does not split into n_heads 32 of even width"),
    ],
)
def test_params_that_mean_something_else_are_refused(changes: dict[str, object], message: str) -> None:
    params = {"dim": 32, "n_layers": 3, "n_heads": 4}
    require_params(params, PATH)
    with pytest.raises(UserError, match=f"params.json:? {message}"):
        require_params(params | changes, PATH)


def test_the_sizes_of_llama_2_70b() -> None:
    params = {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
    trunk = policy_config({**params, "n_layers": 80}, 32000).trunk
    assert (trunk.intermediate_size, trunk.num_key_value_heads, trunk.num_hidden_layers) == (28672, 8, 80)


@pytest.mark.parametrize("dim", [32, 96, 4096])
@pytest.mark.parametrize("size", [1, 48, 85, 256, 1000, 11008, 14336, 28672])
def test_every_feed_forward_size_can_be_said(dim: int, size: int) -> None:
    params = to_params_json(config(hidden_size=dim, num_attention_heads=4, intermediate_size=size))
    assert policy_config(params, 64).trunk.intermediate_size == size


def test_what_llama_2_did_not_have_is_said_only_where_it_is_needed() -> None:
    plain = to_params_json(config(num_attention_heads=4, num_key_value_heads=4))
    assert not {"n_kv_heads", "rope_theta"} & plain.keys()
    other = config(
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    again = policy_config(to_params_json(other), 64).trunk
    assert (again.num_key_value_heads, again.rope_parameters["rope_theta"]) == (2, 5e5)


def test_layers_are_numbered_through_to_head_0_and_later_heads_apart() -> None:
    names = hf_key_map(config(horizon=3))
    inner = "attention.wq.weight"
    assert names[f"layers.1.{inner}"] == "causal_lm.model.layers.1.self_attn.q_proj.weight"
    assert names[f"layers.2.{inner}"] == "causal_lm.model.layers.2.self_attn.q_proj.weight"
    assert names[f"extra_heads.1.{inner}"] == "heads.layers.1.self_attn.q_proj.weight"
    assert f"layers.3.{inner}" not in names
    assert f"extra_heads.2.{inner}" not in names
    assert len(set(names.values())) == len(names) == 3 + 5 * 9
