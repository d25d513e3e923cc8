"""A Qwen3 trunk and one sequential module as a dense EXAONE-MoE model: one folder for transformers, vLLM and SGLang.

EXAONE-MoE's attention is Qwen3's, its layers may all be dense, and it ships a module. In transformers its layers have
no rotary embedding where attention is full; a sliding window of the whole context is exact full attention with one.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models.formats import hf
from wmtp_models.formats.modules import QK_NORM, one_module, sglang_mtp, vllm_mtp
from wmtp_models.formats.roundtrip import head_logits, probe, require_close, require_same_weights
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.loading import load_policy
from wmtp_models.policy import MtpForCausalLM

_NAMES = {
    "enorm.weight": "mtp.pre_fc_norm_embedding.weight",
    "hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
    "eh_proj.weight": "mtp.fc.weight",
    "post_norm.weight": "mtp.norm.weight",
}
_DROPPED = ("use_sliding_window", "max_window_layers", "attention_bias")


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format has no place for."""
    return [] if policy.value_head is None else ["the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    drafts = policy.config.horizon - 1
    return {
        "transformers 5.23, which drafts one token": "model.generate(..., use_mtp=True)",
        "vLLM 0.32 and 0.33": vllm_mtp(drafts),
        "SGLang 0.5.23 (read in its source, not run)": sglang_mtp(drafts),
    }


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write trunk and module.

    Raises:
        UserError: the trunk is no Qwen3 with full attention, or the layout cannot hold the module.
    """
    modules = _module_weights(policy)
    hf.save(policy, folder, extra=modules)
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in _DROPPED}
    layers = config["num_hidden_layers"]
    config |= {
        "architectures": ["ExaoneMoEForCausalLM"],
        "model_type": "exaone_moe",
        "num_nextn_predict_layers": 1,
        "num_mtp_layers": 1,
        "layer_types": ["sliding_attention"] * layers,
        "mtp_layer_types": ["sliding_attention"],
        "sliding_window": config["max_position_embeddings"],
        "sliding_window_pattern": layers + 1,
        "mlp_layer_types": ["dense"] * layers,
        "mtp_mlp_layer_types": ["dense"],
        "is_moe_layer": [False] * (layers + 1),
        "first_k_dense_replace": layers,
        # Of experts that no layer has:
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "num_shared_experts": 1,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Load it as transformers does, compare logits, and decode with and without the module; says what was equal.

    Raises:
        UserError: something is not.
    """
    horizon, eps = policy.config.horizon, torch.finfo(policy.dtype).eps
    loaded = load_policy(folder, horizon, False, policy.dtype, SequentialHeads.kind).eval()
    difference = require_close(head_logits(policy), head_logits(loaded), eps, f"the logits of {folder}")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    require_same_weights(dict(policy.unwrap().state_dict()), dict(plain.state_dict()), folder)
    tokens = probe(policy)
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0}
    how["attention_mask"] = torch.ones_like(tokens[:1])
    if not torch.equal(plain.generate(tokens[:1], **how), plain.generate(tokens[:1], use_mtp=True, **how)):
        raise UserError(f"{folder}: transformers decodes another text with the module than without: nothing was kept")
    return (
        f"the trunk's weights are equal to the bit and the logits of {horizon} heads in {type(plain).__name__} to "
        f"{difference:.1g}, and its generate(use_mtp=True) gives the text that it gives without"
    )


def _module_weights(policy: MtpForCausalLM) -> dict[str, Tensor]:
    trunk = policy.config.trunk
    if trunk.model_type != "qwen3" or {*trunk.layer_types} != {"full_attention"} or trunk.attention_bias:
        raise UserError(
            f"exaone holds a Qwen3 trunk of full attention without biases, and this is {trunk.model_type}: "
            "export to mimo-drafter or generic"
        )
    module = one_module(policy, "exaone", QK_NORM)
    return {_NAMES.get(name, f"mtp.layers.0.{name}"): tensor for name, tensor in module.items()}
