"""The sizes of a model, counted in the real classes on the meta device, where weights have shapes and no memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from wmtp_core import UserError
from wmtp_core.losses.logits_chunk import rows_per_chunk
from wmtp_models import MtpConfig, MtpForCausalLM
from wmtp_models.trunk.parts import trunk_parts

FAMILIES = ("llama", "mistral", "qwen2")
"""Whose layers the formulas of activations and floating-point operations describe: gated MLP, RMSNorm, rotary."""
# Every position's key and value matter to a later token that is learned, so no row of these is skipped.
_DENSE_IN_BACKWARD = ("k_proj", "v_proj")


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, and the widths that the formulas need."""

    trunk: int
    """The layers below the heads, and the final norm."""
    heads: int
    """The H layers in the place of the last one."""
    embedding: int
    unembedding: int
    """0 where it is tied to the embedding."""
    layer_matrices: int
    """Weights of one layer's linear layers; all layers are alike."""
    row_sparse_matrices: int
    """Those of them that skip, in heads ≥ 1, the rows of tokens that were not selected."""
    layers: int
    """L: those of the trunk, and one head."""
    horizon: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    attention_width: int
    """All attention heads' queries together."""
    rows_of_logits: int
    """How many rows of logits the loss forms at once on an accelerator."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trunk + self.heads + self.embedding + self.unembedding


def measure_model(trunk_config: dict[str, Any], horizon: int) -> ModelSize:
    """Build the model without memory and count; a horizon of 1 is the plain causal LM.

    Args:
        trunk_config: a transformers configuration as a dictionary, of one of `FAMILIES`.
        horizon: number of heads H, decoder layers all.

    Raises:
        UserError: a value that the architecture refuses.
    """
    try:
        trunk = AutoConfig.for_model(**trunk_config)
        with torch.device("meta"):
            policy = MtpForCausalLM(MtpConfig(trunk=trunk, horizon=horizon))
    except Exception as error:  # each architecture refuses in a way of its own
        raise UserError(f"model.config: no model can be built so ({' '.join(str(error).split())}); mend it") from error
    parts = trunk_parts(policy.causal_lm)
    head = policy.head_layers.heads[0]
    matrices = {name: module.weight.numel() for name, module in head.named_modules() if isinstance(module, nn.Linear)}
    dense = sum(count for name, count in matrices.items() if name.endswith(_DENSE_IN_BACKWARD))
    embedding, unembedding = policy.get_input_embeddings().weight, parts.unembedding.weight
    size = ModelSize(
        trunk=sum(_count(layer) for layer in parts.layers[:-1]) + _count(parts.norm),
        heads=_count(policy.head_layers),
        embedding=embedding.numel(),
        unembedding=0 if unembedding is embedding else unembedding.numel(),
        layer_matrices=sum(matrices.values()),
        row_sparse_matrices=sum(matrices.values()) - dense,
        layers=len(parts.layers),
        horizon=horizon,
        vocab_size=unembedding.shape[0],
        hidden_size=unembedding.shape[1],
        intermediate_size=trunk.intermediate_size,
        attention_heads=trunk.num_attention_heads,
        attention_width=head.get_submodule("self_attn.q_proj").out_features,
        rows_of_logits=rows_per_chunk(unembedding),
    )
    assert size.parameters == _count(policy), "every parameter is in one of the parts"
    return size


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
