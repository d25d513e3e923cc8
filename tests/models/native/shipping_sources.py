"""Tiny sources that ship modules, written under the names that their families publish."""

from pathlib import Path
from typing import Any, NamedTuple

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
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 64}  # of equal scores, which it takes is open
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
    """A family that ships modules.

    Attributes:
        config: of the trunk, beside `COMMON`.
        names: what its tensors are called, by what they are.
        modules: K.
        attention: `layer_types`, of the trunk's layers and then of the modules.
        mlp: `mlp_layer_types`, likewise.
        said: what config.json says of the modules.
    """

    config: dict[str, Any]
    names: dict[str, str]
    modules: int = 1
    attention: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    said: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    @property
    def packing(self) -> bool:
        """Whether packed documents would be kept apart."""
        return LINEAR_ATTENTION not in self.attention

    def layer_kinds(self, count: int) -> dict[str, Any]:
        """What the configuration of a decoder of the first layers says of each."""
        kinds = {"layer_types": list(self.attention[:count]), "mlp_layer_types": list(self.mlp[:count])}
        return {name: kind for name, kind in kinds.items() if kind}


SLIDING, FULL, LINEAR_ATTENTION = S, F, L = "sliding_attention", "full_attention", "linear_attention"
ONE = {"num_nextn_predict_layers": 1}
MELLUM = {**MOE, "head_dim": 8, "num_experts": 4, "sliding_window": 6}
QWEN_MOE = {**MOE, "head_dim": 8, "shared_expert_intermediate_size": 16, "num_experts": 4}
SHIPPING: dict[str, Family] = {
    "mellum": Family(MELLUM, QWEN, 1, (S, F, S, F), ("dense", *["sparse"] * 3), {**ONE, "mtp_layer_types": [F]}),
    "mellum dense": Family(
        MELLUM, QWEN, 1, (F, S, F, S), ("dense",) * 4, {**ONE, "mtp_layer_types": [S], "mtp_mlp_layer_types": ["dense"]}
    ),
    "exaone_moe": Family(
        {**MOE, **GROUPS, "head_dim": 8, "num_experts": 4, "num_shared_experts": 1, "sliding_window": 6},
        QWEN,
        1,
        (S, S, F, S),
        ("dense", "sparse", "sparse", "dense"),
        ONE,
    ),
    "glm4_moe": Family({**ROUTED, "head_dim": 8}, DEEPSEEK, 2, said={"num_nextn_predict_layers": 2}),
    "glm4_moe_lite": Family({**ROUTED, **LATENT}, DEEPSEEK, said=ONE),
    "deepseek_v3": Family({**ROUTED, **LATENT}, DEEPSEEK, said=ONE),
    "deepseek_v32": Family({**ROUTED, **LATENT, **INDEXER}, DEEPSEEK, said=ONE),
    "glm_moe_dsa": Family({**ROUTED, **LATENT, **INDEXER}, DEEPSEEK, said=ONE),
    "hy_v3": Family({**MOE, "head_dim": 8, "num_experts": 4, "num_shared_experts": 1}, DEEPSEEK, said=ONE),
    "ernie4_5_moe": Family(
        {
            "moe_intermediate_size": 16,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
            "moe_layer_interval": 1,
        },
        ERNIE,
        said=ONE,
    ),
    "mimo_v2_flash": Family(
        {**MOE, **GROUPS, "n_routed_experts": 4, "head_dim": 8, "v_head_dim": 8, "sliding_window": 6},
        MIMO_V2,
        2,
        (F, S, F, S, S),
        ("dense", "sparse", "sparse", "dense", "dense"),
    ),
    "qwen3_next": Family(QWEN_MOE, QWEN, 1, (F,) * 4),
    "qwen3_5_text": Family({"head_dim": 8}, QWEN, 1, (F,) * 4),
    "qwen3_next recurrent": Family({**QWEN_MOE, **LINEAR}, QWEN, 1, (L, L, F, F)),
    "qwen3_5_text recurrent": Family({"head_dim": 8, **LINEAR}, QWEN, 1, (L, L, F, F)),
    "qwen3_5_moe_text": Family(QWEN_MOE, QWEN, 1, (F,) * 4),
    "qwen2": Family({}, MIMO, said=ONE),
    "llama": Family({}, GENERIC, 3, said={"num_mtp_layers": 3}),
    "qwen3": Family({"head_dim": 8}, GENERIC, 1, said={"num_mtp_layers": 1}),
}
"""By model type; `mellum dense` is one of two kinds."""


def write_source(family: Family, model_type: str, folder: Path, **more: Any) -> dict[str, Tensor]:
    """Write a source that ships modules, and return its tensors by the names in its file.

    Trunk and modules are the layers of one decoder, which transformers saves as the family publishes them.
    """
    draw = torch.Generator().manual_seed(0)
    count = LAYERS + family.modules
    config = {**COMMON, **family.config, **more, "num_hidden_layers": count, **family.layer_kinds(count)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    with torch.no_grad():
        for tensor in whole.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw))
    whole.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
        tensors[_published(family, name, layer) if layer >= LAYERS else name] = tensor
    width = whole.config.hidden_size
    drawn = {"eh_proj.weight": (width, 2 * width), **dict.fromkeys(("enorm.weight", "hnorm.weight"), (width,))}
    drawn["post_norm.weight"] = (width,)
    copies = {"embedding": "model.embed_tokens.weight", "unembedding": "lm_head.weight"}
    for depth in range(family.modules):
        for part, name in family.names.items():
            if part in drawn:
                tensor = 0.2 * torch.randn(drawn[part], generator=draw) + (0 if part == "eh_proj.weight" else 1)
                tensors[name.format(depth=depth, layer=LAYERS + depth)] = tensor
            elif part in copies:
                tensors[name.format(depth=depth, layer=LAYERS + depth)] = tensors[copies[part]].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own = {"num_hidden_layers": LAYERS, **family.layer_kinds(LAYERS), **family.said}
    config = {**COMMON, **family.config, **more, **own, "dtype": "float32", "architectures": [type(whole).__name__]}
    trunk = AutoConfig.for_model(model_type, **config)
    trunk.save_pretrained(folder)
    return tensors


def _published(family: Family, name: str, layer: int) -> str:
    """The published name of a tensor of the block whose layer has this number."""
    part = "block." + name.split(".", 3)[3]
    ours = next(ours for ours in family.names if part.startswith(ours))
    return family.names[ours].format(depth=layer - LAYERS, layer=layer) + part.removeprefix(ours)
