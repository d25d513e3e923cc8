"""What a token costs a policy in training, by formula: model FLOP as in PaLM (Chowdhery et al., arXiv 2204.02311, B).

Two operations for each element of a matrix that a token is multiplied with, in the forward and in each of the two
products of a backward, that of the input's gradient and that of the weight's; 2·S·heads·(d_k + d_v) for attention in a
forward of S tokens, and twice that in a backward. So it is what the model asks for and not what a program does: what is
computed again for the backward, rows that selection lets it skip, and the half of attention that a causal mask leaves
out change nothing. Nor do documents that are shorter than their row. Norms, activations and lookups do not count.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from wmtp_models.heads.medusa import MedusaHeads
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.policy import MtpForCausalLM

_LOOKUPS = (nn.Embedding, nn.Conv1d)  # the latter depthwise, of recurrent layers
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
_NO_PRODUCTS = ("linear_attention", "conv", "mamba", "recurrent")  # kinds of layers that are linear in S


def flop_per_token(policy: MtpForCausalLM, sequence_length: int) -> float:
    """Return the model FLOP of one token's forward and backward, on average over a row.

    Mixtures of experts count the experts that a token is sent to. What does not learn has no weight's gradient, and
    what nothing below or in it learns no backward.

    Args:
        policy: whose parameters may lie in parts, as under ZeRO-3.
        sequence_length: S.

    Returns:
        NaN where the configuration does not say how many heads its attention has, or how many experts see a token.
    """
    config, trunk, heads = policy.config.text, policy.trunk, policy.heads
    below = _learns(policy.get_input_embeddings())
    total = 0.0
    for index, layer in enumerate(trunk.layers):
        below_last, below = below, below or _learns(layer)
        total += _matrices(layer, config, below) + _attention(config, index, sequence_length, below)
    called_as = heads.called_as % len(trunk.layers)
    for head in _heads(policy):
        if isinstance(heads, MedusaHeads):
            total += _matrices(head, config, below)
        else:
            reached = below_last or _learns(head)
            total += _matrices(head, config, reached) + _attention(config, called_as, sequence_length, reached)
    if policy.value_head is not None:
        total += _matrices(policy.value_head, config, input_gradient=True)
    vocabulary, width = _shape(trunk.weight)
    learns = trunk.weight.requires_grad
    products = policy.config.horizon * (2 + learns)
    if not (learns or below):
        products -= 1  # head 0 has no backward
    return total + 2 * products * vocabulary * width


def _heads(policy: MtpForCausalLM) -> Iterator[nn.Module]:
    """Yield the module of each head after the first; a shared one once for every depth."""
    heads = policy.heads
    if isinstance(heads, SequentialHeads):
        yield from (heads.layers[min(depth, len(heads.layers) - 1)] for depth in range(len(heads)))
    else:
        yield from (head for kind in heads.children() for head in kind.children())


def _matrices(module: nn.Module, config: Any, input_gradient: bool) -> float:
    """Return the FLOP of a token's products with the matrices of a module.

    Args:
        module: a layer or head.
        config: the trunk's, which says how many experts a token is sent to.
        input_gradient: whether the gradient of the products' inputs is needed.
    """
    total = 0.0
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        shape = _shape(parameter)
        if len(shape) < 2 or isinstance(owner, _LOOKUPS):
            continue
        elements = float(math.prod(shape))
        listed = re.match(r"(.*\bexperts)\.\d+\.", name)
        if listed or len(shape) == 3:
            experts = len(list(module.get_submodule(listed[1]).children())) if listed else shape[0]
            elements *= next((getattr(config, key) for key in _CHOSEN if hasattr(config, key)), math.nan) / experts
        total += 2 * elements * (1 + input_gradient + parameter.requires_grad)
    return total


def _attention(config: Any, index: int, sequence_length: int, backward: bool) -> float:
    """Return the FLOP of a token's attention in the layer of an index; in a window it sees no more than that."""
    kind = (getattr(config, "layer_types", None) or ["sliding_attention"] * (index + 1))[index]
    if kind in _NO_PRODUCTS:
        return 0.0
    window = getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return math.nan
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    value = getattr(config, "v_head_dim", None) or size
    if getattr(config, "qk_nope_head_dim", None):  # multi-head latent attention
        size = config.qk_nope_head_dim + config.qk_rope_head_dim
    return 2.0 * min(sequence_length, window or sequence_length) * heads * (size + value) * (1 + 2 * backward)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """Return a parameter's whole shape, where DeepSpeed has left a part of it too."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
