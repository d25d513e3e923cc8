"""The decoder layer of Qwen2 for the modules of another trunk: the one that servers have for MiMo's layout."""

from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from wmtp_core import UserError
from wmtp_models.trunk.parts import TrunkParts

_FAMILIES = ("llama", "qwen2", "qwen3")  # whose layers are called alike
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
)


@torch.no_grad()
def build_qwen2_block(trunk: TrunkParts) -> nn.Module:
    """Build a layer that starts with the weights of the trunk's last one, as far as both have them, and biases of 0.

    Raises:
        UserError: the trunk does not call its layers so, or its heads are of another size.
    """
    config: Any = trunk.causal_lm.config
    size = config.hidden_size // config.num_attention_heads
    if config.model_type not in _FAMILIES:
        raise UserError(
            f"head_block qwen2 stands beside {', '.join(_FAMILIES)}, and this is {config.model_type}: set it to trunk"
        )
    if (getattr(config, "head_dim", None) or size) != size:
        raise UserError(
            f"head_block qwen2 has attention heads of hidden_size / num_attention_heads = {size} dimensions, and the "
            f"trunk's have {config.head_dim}: set it to trunk"
        )
    like = Qwen2Config(**{name: getattr(config, name) for name in _SIZES})
    like._attn_implementation = config._attn_implementation
    weight = trunk.weight
    block = Qwen2DecoderLayer(like, len(trunk.layers) - 1).to(device=weight.device, dtype=weight.dtype)
    for name, bias in block.named_parameters():
        if name.endswith(".bias"):
            bias.zero_()
    block.load_state_dict(trunk.last_layer.state_dict(), strict=False)
    for module in block.modules():
        module._is_hf_initialized = True  # or these weights are drawn anew
    return block
