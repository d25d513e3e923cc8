"""A Llama, Qwen2 or Qwen3 trunk and its sequential modules as a GLM-4.5 model.

GLM-4.5's attention is theirs, with a norm of queries and keys or biases as options, once all of a head is rotated. Its
modules are mixtures of experts, and servers want one such layer in the trunk too. So the gated MLP of the last layer
and of the modules is split in two: one half of its units is the shared expert, and the other half is both of two routed
experts, of which one is always chosen, with a weight of 1.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Glm4MoeConfig, PreTrainedConfig, PreTrainedModel

from wmtp_core import UserError
from wmtp_models.formats import hf
from wmtp_models.formats.modules import (
    ATTENTION,
    QK_NORM,
    QKV_BIAS,
    REST,
    SIZES,
    module_weights,
    sequential_heads,
    sglang_mtp,
    vllm_mtp,
)
from wmtp_models.formats.roundtrip import head_logits, require_close
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.loading import load_policy
from wmtp_models.policy import MtpForCausalLM

_ATTENTIONS = {"llama": set(), "qwen2": QKV_BIAS, "qwen3": QK_NORM}


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format has no place for."""
    return [] if policy.value_head is None else ["the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    drafts = policy.config.horizon - 1
    return {
        "vLLM 0.32 and 0.33": vllm_mtp(drafts),
        "SGLang 0.5.23 (read in its source, not run)": sglang_mtp(drafts),
        "llama.cpp since August 2026 (read in its source, not run)": (
            "python convert_hf_to_gguf.py FOLDER --outfile model.gguf && "
            f"llama-server -m model.gguf --spec-type draft-mtp --draft-max {drafts}"
        ),
    }


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write trunk and modules.

    Raises:
        UserError: the heads are not sequential, or the layout cannot hold the trunk's layers.
    """
    heads = sequential_heads(policy, "glm")
    trunk = policy.config.trunk
    _require_expressible(trunk, module_weights(heads, 1))
    layers = trunk.num_hidden_layers
    last = f"model.layers.{layers - 1}."
    state = dict(policy.unwrap().state_dict())
    state |= _split({name: state.pop(name) for name in list(state) if name.startswith(f"{last}mlp.")}, f"{last}mlp.")
    with torch.device("meta"):
        glm: PreTrainedModel = AutoModelForCausalLM.from_config(_config(policy, len(heads.layers)), dtype=policy.dtype)
    glm.load_state_dict(state, assign=True)
    glm.tie_weights()
    glm.generation_config = policy.causal_lm.generation_config
    modules: dict[str, Tensor] = {}
    for depth in range(len(heads.layers)):
        prefix = f"model.layers.{layers + depth}."
        weights = module_weights(heads, depth + 1)
        weights["shared_head.norm.weight"] = weights.pop("post_norm.weight")
        mlp = {name: weights.pop(name) for name in list(weights) if name.startswith("mlp.")}
        weights |= _split(mlp, "mlp.")
        modules |= {prefix + name: tensor for name, tensor in weights.items()}
    hf.write(glm, folder, modules)


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Load it as a GLM-4.5 model with its modules, and compare logits; says what was equal.

    Raises:
        UserError: they differ by more than rounding.
    """
    config = policy.config
    shared = isinstance(policy.heads, SequentialHeads) and len(policy.heads.layers) == 1
    glm = load_policy(folder, config.horizon, False, policy.dtype, SequentialHeads.kind, shared).eval()
    difference = require_close(
        head_logits(policy), head_logits(glm), torch.finfo(policy.dtype).eps, f"the logits of {folder}"
    )
    return f"the logits of {config.horizon} heads in {type(glm.causal_lm).__name__} are equal to {difference:.1g}"


def _require_expressible(trunk: PreTrainedConfig, module: dict[str, Tensor]) -> None:
    family = trunk.model_type
    reasons = {
        f"this is {family}": family not in _ATTENTIONS,
        "its layers have other weights": family in _ATTENTIONS
        and module.keys() != ATTENTION | REST | _ATTENTIONS[family],
        "its MLP has an odd number of units": getattr(trunk, "intermediate_size", 0) % 2 == 1,
        "some of its attention is sliding": "sliding_attention" in (getattr(trunk, "layer_types", None) or ()),
    }
    reason = next((reason for reason, there in reasons.items() if there), None)
    if reason is not None:
        raise UserError(f"glm holds a Llama, Qwen2 or Qwen3 with a plain gated MLP, and {reason}: export to generic")


def _config(policy: MtpForCausalLM, modules: int) -> PreTrainedConfig:
    trunk: Any = policy.config.trunk
    kept = {name: getattr(trunk, name) for name in (*SIZES, "initializer_range", "pad_token_id")}
    heads = trunk.num_attention_heads
    return Glm4MoeConfig(
        **kept,
        head_dim=getattr(trunk, "head_dim", None) or trunk.hidden_size // heads,
        attention_bias=trunk.model_type == "qwen2",
        use_qk_norm=trunk.model_type == "qwen3",
        partial_rotary_factor=1.0,
        rope_parameters={**trunk.rope_parameters, "partial_rotary_factor": 1.0},
        num_nextn_predict_layers=modules,
        first_k_dense_replace=trunk.num_hidden_layers - 1,
        moe_intermediate_size=trunk.intermediate_size // 2,
        n_routed_experts=2,
        n_shared_experts=1,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        architectures=["Glm4MoeForCausalLM"],
    )


def _split(mlp: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a gated MLP as a shared expert and two equal routed ones, stacked as transformers has them."""
    gate, up, down = (mlp[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down"))
    (gate_s, gate_r), (up_s, up_r), (down_s, down_r) = gate.chunk(2), up.chunk(2), down.chunk(2, dim=1)
    return {
        f"{prefix}shared_experts.gate_proj.weight": gate_s.contiguous(),
        f"{prefix}shared_experts.up_proj.weight": up_s.contiguous(),
        f"{prefix}shared_experts.down_proj.weight": down_s.contiguous(),
        f"{prefix}experts.gate_up_proj": torch.cat([gate_r, up_r]).repeat(2, 1, 1),
        f"{prefix}experts.down_proj": down_r.repeat(2, 1, 1),
        f"{prefix}gate.weight": gate.new_zeros(2, gate.shape[1]),
        f"{prefix}gate.e_score_correction_bias": torch.zeros(2, device=gate.device),
    }
