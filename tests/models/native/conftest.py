"""Tiny sources that ship modules, written under the names that their families publish."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS = 3
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MOE: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GROUPS: dict[str, Any] = {"n_group": 1, "topk_group": 1}
ROUTED: dict[str, Any] = {**MOE, **GROUPS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
QWEN_MOE: dict[str, Any] = {**MOE, "head_dim": 8, "shared_expert_intermediate_size": 16, "num_experts": 4}
DEEPSEEK = {
    "eh_proj.weight": "model.layers.{layer}.eh_proj.weight",
    "enorm.weight": "model.layers.{layer}.enorm.weight",
    "hnorm.weight": "model.layers.{layer}.hnorm.weight",
    "post_norm.weight": "model.layers.{layer}.shared_head.norm.weight",
    "embedding": "model.layers.{layer}.embed_tokens.weight",
    "unembedding": "model.layers.{layer}.shared_head.head.weight",
    "block.": "model.layers.{layer}.",
}
QWEN = {
    "eh_proj.weight": "mtp.fc.weight",
    "enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "post_norm.weight": "mtp.norm.weight",
    "block.": "mtp.layers.0.",
}
GENERIC = {
    "eh_proj.weight": "mtp.layers.{depth}.eh_proj.weight",
    "enorm.weight": "mtp.layers.{depth}.enorm.weight",
    "hnorm.weight": "mtp.layers.{depth}.hnorm.weight",
    "post_norm.weight": "mtp.layers.{depth}.post_norm.weight",
    "block.": "mtp.layers.{depth}.",
}
MIMO = {
    "eh_proj.weight": "model.mtp_layers.{depth}.input_proj.weight",
    "enorm.weight": "model.mtp_layers.{depth}.token_layernorm.weight",
    "hnorm.weight": "model.mtp_layers.{depth}.hidden_layernorm.weight",
    "post_norm.weight": "model.mtp_layers.{depth}.final_layernorm.weight",
    "block.": "model.mtp_layers.{depth}.",
}
MIMO_V2 = {
    "eh_proj.weight": "model.mtp.layers.{depth}.eh_proj.weight",
    "enorm.weight": "model.mtp.layers.{depth}.enorm.weight",
    "hnorm.weight": "model.mtp.layers.{depth}.hnorm.weight",
    "post_norm.weight": "model.mtp.layers.{depth}.final_layernorm.weight",
    "block.post_attention_layernorm.": "model.mtp.layers.{depth}.pre_mlp_layernorm.",
    "block.": "model.mtp.layers.{depth}.",
}
ERNIE = {
    "eh_proj.weight": "model.mtp_linear_proj.{depth}.weight",
    "enorm.weight": "model.mtp_emb_norm.{depth}.weight",
    "hnorm.weight": "model.mtp_hidden_norm.{depth}.weight",
    "block.": "model.mtp_block.{depth}.",
}


class Family(NamedTuple):
    """One family: its configuration, its names, and what its modules are.

    Attributes:
        trunk: what its configuration differs by.
        names: by what they are.
        modules: K.
        attention: of the trunk's layers and then of the modules, where a configuration says so.
        dense: modules are no mixtures of experts, and so is the last layer of the trunk that writes them.
        said: more keys of the configuration.
    """

    trunk: dict[str, Any]
    names: dict[str, str]
    modules: int = 1
    attention: tuple[str, ...] = ()
    dense: dict[str, Any] | None = None
    said: dict[str, Any] = {}  # noqa: RUF012 (never changed)


SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = (SLIDING, FULL, SLIDING)
SHIPPING: dict[str, Family] = {
    "mellum": Family({**MOE, "head_dim": 8, "num_experts": 4, "sliding_window": 6}, QWEN, attention=(*MIXED, FULL)),
    "exaone_moe": Family(
        {**MOE, **GROUPS, "head_dim": 8, "num_experts": 4, "num_shared_experts": 1, "sliding_window": 6},
        QWEN,
        attention=(SLIDING, SLIDING, FULL, SLIDING),
    ),
    "glm4_moe": Family({**ROUTED, "head_dim": 8}, DEEPSEEK, modules=2),
    "glm4_moe_lite": Family({**ROUTED, **LATENT}, DEEPSEEK),
    "deepseek_v3": Family({**ROUTED, **LATENT}, DEEPSEEK),
}
