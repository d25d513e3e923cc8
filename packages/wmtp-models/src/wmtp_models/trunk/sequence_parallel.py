"""Attention over rows of which each process holds a slice: DeepSpeed's Ulysses (Jacobs et al., arXiv 2309.14509).

Queries, keys and values of a slice are exchanged for those of the whole row in an n-th of the attention heads; the
attention that the model would have used runs on these, and its output is exchanged back. All else in a trunk and in
its heads looks at one token at a time. DeepSpeed's own wrapper for transformers keeps documents of a row apart under
FlashAttention alone, so that the exchange stands here, as attention functions of transformers' `AttentionInterface`.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    causal_mask_function,
    packed_sequence_compatibility_function,
    sliding_window_causal_mask_function,
)

from wmtp_core import UserError
from wmtp_models.trunk.row_slices import Slices

_SPLIT = {"sdpa": "split_sdpa", "flex_attention": "split_flex"}
_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Rows:
    """The rows of one forward, as all processes that share them know them.

    Attributes:
        slices: how they are cut.
        position_ids: int64 `[B, S]`, which restart at each document.
    """

    slices: Slices
    position_ids: Tensor


@dataclass(frozen=True)
class WholeMask:
    """What stands for a mask between a trunk and its layers: of whole rows, though the layer holds a slice.

    It is an argument of the layers, so that heads which repeat such a call, and a layer that is computed again in the
    backward, attend over the same rows.
    """

    slices: Slices
    mask: Any


_rows: ContextVar[Rows] = ContextVar("rows")


def run_trunk(
    slices: Slices, base_model: Callable[..., Any], input_ids: Tensor, position_ids: Tensor | None, **how: Any
) -> Any:
    """Run a trunk over its slice of whole rows; returns its output.

    Args:
        slices: how rows are cut.
        base_model: the trunk.
        input_ids: int64 `[B, S]`.
        position_ids: int64 `[B, S]`, which restart at each document; None: a row is one document.
        how: what else the trunk is called with.
    """
    if slices.count == 1:
        layout = {} if position_ids is None else {"position_ids": position_ids}
        return base_model(input_ids=input_ids, **layout, **how)
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    token = _rows.set(Rows(slices, position_ids))
    try:
        return base_model(input_ids=slices.part(input_ids), position_ids=slices.part(position_ids), **how)
    finally:
        _rows.reset(token)


def wrap_attention(model: nn.Module, causal_lm: Any, count: int) -> None:
    """Let every attention in a model exchange slices for heads, in place.

    Args:
        model: the causal LM, or what it is a part of.
        causal_lm: whose configuration is looked at.
        count: of the slices of a row.

    Raises:
        UserError: attention of another kind than transformers' SDPA or flex, or layers that pass tokens on otherwise.
    """
    config = causal_lm.config.get_text_config()
    attention = config._attn_implementation
    if attention not in _SPLIT:
        raise cannot_split(causal_lm, count, f"its attention is {attention}, and not one of {', '.join(_SPLIT)}")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others or getattr(config, "attention_chunk_size", None):
        raise cannot_split(causal_lm, count, f"it has layers of {', '.join(others) or 'chunked_attention'}")
    for part in model.modules():  # heads that were copied from a layer have a configuration of their own
        own: Any = getattr(part, "config", None)
        if getattr(own, "_attn_implementation", None) == attention:
            own._attn_implementation = _SPLIT[attention]


def cannot_split(causal_lm: nn.Module, count: int, reason: str) -> UserError:
    """Return the error that says why rows of a model cannot be cut into slices."""
    return UserError(
        f"sequence_parallel_size is {count}, and {type(causal_lm).__name__} cannot share rows between so many "
        f"processes: {reason}; set it to another number, or to 1"
    )


def _mask(attention: str, *, mask_function: Any, local_size: int | None = None, **how: Any) -> WholeMask:
    """Make the mask of whole rows; what transformers says of the slice's own tokens is passed over."""
    rows = _rows.get()
    positions = rows.slices.repeat(rows.position_ids)
    documents = (positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1).cumsum(dim=1)
    base = causal_mask_function if local_size is None else sliding_window_causal_mask_function(local_size)
    batch, length = positions.shape
    how |= {"batch_size": batch, "q_length": length, "kv_length": length, "allow_is_causal_skip": False}
    make = AttentionMaskInterface()[attention]
    return WholeMask(
        rows.slices, make(mask_function=packed_sequence_compatibility_function(base, positions, documents), **how)
    )


def _attend(
    attention: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: WholeMask, **how: Any
) -> tuple[Tensor, None]:
    """Attend over whole rows with an n-th of the heads: `[B, heads, S/n, d]` in, `[B, S/n, heads, d]` out."""
    slices = attention_mask.slices
    heads = (query.shape[1], key.shape[1])
    if any(number % slices.count for number in heads):
        raise UserError(
            f"sequence_parallel_size is {slices.count}, and a layer has {heads[0]} attention heads and {heads[1]} of "
            "keys and values: set it to a number that divides both"
        )
    whole = [slices.exchange(part, split=1, joined=2) for part in (query, key, value)]  # [B, heads/n, S, d]
    output, _ = AttentionInterface()[attention](module, *whole, attention_mask.mask, **how)
    return slices.exchange(output, split=1, joined=2), None


for _name, _split in _SPLIT.items():
    AttentionInterface.register(_split, partial(_attend, _name))
    AttentionMaskInterface.register(_split, partial(_mask, _name))
