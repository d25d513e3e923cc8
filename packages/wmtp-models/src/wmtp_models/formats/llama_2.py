"""Llama 2 with heads as it was published, in transformers' terms: parameters, names and the order of dimensions."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from wmtp_core import UserError
from wmtp_models.config import MtpConfig

_CONTEXT = 4096  # Llama 2's; the format does not say
_COUNTS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "n_future_tokens")
_REALS = ("norm_eps", "rope_theta", "ffn_dim_multiplier")
_UNUSED = ("vocab_size", "max_batch_size", "max_seq_len")  # the embedding tells the first, -1 in Llama 2's own files
_REQUIRED = ("dim", "n_layers", "n_heads")
_MAY_BE_NULL = ("n_kv_heads", "ffn_dim_multiplier")
_SHARED = {
    "tok_embeddings.weight": "causal_lm.model.embed_tokens.weight",
    "norm.weight": "causal_lm.model.norm.weight",
    "output.weight": "causal_lm.lm_head.weight",
}
_IN_A_LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}


def require_params(params: dict[str, Any], path: Path) -> None:
    """Refuse what does not describe a Llama 2 with heads, or might describe more than that.

    Raises:
        UserError: a parameter that is missing, unknown or out of its bounds; numbers that do not go together.
    """
    if unknown := sorted(params.keys() - {*_COUNTS, *_REALS, *_UNUSED}):
        raise UserError(
            f"{path} has {unknown[0]} ({params[unknown[0]]!r}), which Llama 2 does not: convert the model to Hugging "
            "Face's format with the tool of those who published it"
        )
    for name in (*_REQUIRED, *params):
        value: Any = params.get(name)
        if name in _UNUSED or (name in _MAY_BE_NULL and value is None):
            continue
        what, types = ("whole number", (int,)) if name in _COUNTS else ("finite number", (int, float))
        if type(value) not in types or not 0 < value < math.inf:
            raise UserError(f"{path}: {name} is {value!r}, not a {what} above 0: copy it again")
    dim, layers, heads = (params[name] for name in _REQUIRED)
    groups, horizon = params.get("n_kv_heads") or heads, params.get("n_future_tokens", 1)
    if dim % (2 * heads):
        raise UserError(f"{path}: dim {dim} does not split into n_heads {heads} of even width: copy it again")
    if heads % groups:
        raise UserError(f"{path}: n_heads {heads} is not a multiple of n_kv_heads {groups}: copy it again")
    if horizon > layers:
        raise UserError(f"{path}: n_future_tokens is {horizon} of {layers} layers: copy it again")


def policy_config(params: dict[str, Any], vocab_size: int) -> MtpConfig:
    """Return our configuration of what params.json describes."""
    horizon = params.get("n_future_tokens", 1)
    trunk = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=params["dim"],
        intermediate_size=_feed_forward_size(
            params["dim"], params.get("multiple_of", 256), params.get("ffn_dim_multiplier")
        ),
        num_hidden_layers=params["n_layers"] - horizon + 1,
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params.get("n_kv_heads") or params["n_heads"],
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": params.get("rope_theta", 10000.0)},
        max_position_embeddings=_CONTEXT,
        bos_token_id=None,  # the defaults of these ids belong to one tokenizer
        eos_token_id=None,
    )
    return MtpConfig(trunk=trunk, horizon=horizon)


def to_params_json(config: MtpConfig) -> dict[str, Any]:
    """Return what params.json says of such a configuration; what has a default there only where it differs."""
    trunk = config.trunk
    params = {
        "dim": trunk.hidden_size,
        "n_layers": trunk.num_hidden_layers + config.horizon - 1,
        "n_heads": trunk.num_attention_heads,
        "vocab_size": trunk.vocab_size,
        "norm_eps": trunk.rms_norm_eps,
        "n_future_tokens": config.horizon,
        **_feed_forward_params(trunk.hidden_size, trunk.intermediate_size),
    }
    if trunk.num_key_value_heads != trunk.num_attention_heads:
        params["n_kv_heads"] = trunk.num_key_value_heads
    if trunk.rope_parameters["rope_theta"] != 10000.0:
        params["rope_theta"] = trunk.rope_parameters["rope_theta"]
    return params


def _feed_forward_size(dim: int, multiple_of: int, multiplier: float | None) -> int:
    size = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * -(-size // multiple_of)


def _feed_forward_params(dim: int, size: int) -> dict[str, Any]:
    """Return the parameters that give this size: Llama 2's own where they do."""
    for multiple_of in (256, 1):
        if _feed_forward_size(dim, multiple_of, None) == size:
            return {"multiple_of": multiple_of}
    multiplier = (size + 0.5) / int(2 * (4 * dim) / 3)  # half a unit more, which rounding down takes off
    assert _feed_forward_size(dim, 1, multiplier) == size
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


def hf_key_map(config: MtpConfig) -> dict[str, str]:
    """Return our name of every weight by its name there."""
    layers = {f"layers.{i}": f"causal_lm.model.layers.{i}" for i in range(config.trunk.num_hidden_layers)}
    layers |= {f"extra_heads.{h}": f"heads.layers.{h}" for h in range(config.horizon - 1)}
    inner = {f"{a}.{b}": f"{x}.{y}" for a, x in layers.items() for b, y in _IN_A_LAYER.items()}
    return {**_SHARED, **inner}


def permute_rope(name: str, weight: Tensor, config: MtpConfig, back: bool = False) -> Tensor:
    """Return query and key rows in transformers' order of a head's dimensions, or back in the format's."""
    heads = {
        "q_proj.weight": config.trunk.num_attention_heads,
        "k_proj.weight": config.trunk.num_key_value_heads,
    }.get(name.rsplit("self_attn.", 1)[-1])
    if heads is None or weight.shape[0] % (2 * heads):
        return weight
    pairs = (heads, 2, -1) if back else (heads, -1, 2)
    return weight.reshape(*pairs, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
