"""Attention over rows of which each process holds a slice: DeepSpeed's Ulysses (Jacobs et al., arXiv 2309.14509).

Queries, keys and values of a slice are exchanged for those of the whole row in an n-th of the attention heads; the
attention that the model would have used runs on these, and its output is exchanged back. All else in a trunk and in
its heads looks at one token at a time. DeepSpeed's own wrapper for transformers keeps documents of a row apart under
FlashAttention alone, so that the exchange stands here, as attention functions of transformers' `AttentionInterface`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wmtp_core import UserError
from wmtp_models.trunk.block_mask import causal_block_mask
from wmtp_models.trunk.packed_masks import FLEX, find_stretches, known_packing
from wmtp_models.trunk.packing_layout import DocumentBounds, TrunkRows, find_bounds, lay_out_rows
from wmtp_models.trunk.row_slices import Slices

SPLIT = {
    "sdpa": "split_sdpa",
    FLEX: "split_flex",
    "flash_attention_2": "split_fa2",
    "flash_attention_3": "split_fa3",
}
"""Attention implementations by transformers' name, and the name of the same over slices of rows."""


@dataclass(frozen=True)
class SharedForward:
    """The rows of one forward, as all processes that share them know them.

    Attributes:
        slices: how they are cut.
        position_ids: int64 `[B, S]`, which restart at each document.
        bounds: of the documents in whole rows, if the host knows.
    """

    slices: Slices
    position_ids: Tensor
    bounds: DocumentBounds | None


@dataclass(frozen=True)
class WholeMask:
    """What stands for a mask between a trunk and its layers: of whole rows, though the layer holds a slice.

    It is an argument of the layers, so that heads which repeat such a call, and a layer that is computed again in the
    backward, attend over the same rows.

    Attributes:
        slices: how they are cut.
        mask: of the wrapped attention; None for FlashAttention.
        bounds: of the documents, for FlashAttention.
    """

    slices: Slices
    mask: Any
    bounds: DocumentBounds | None = None


_forward: ContextVar[SharedForward] = ContextVar("forward")


def lay_out(
    slices: Slices, implementation: str, input_ids: Tensor, position_ids: Tensor | None, bounds: DocumentBounds | None
) -> TrunkRows:
    """Prepare rows for a trunk that is given its slices of them; of one that is given whole rows as `lay_out_rows`."""
    if slices.count == 1:
        return lay_out_rows(implementation, input_ids, position_ids, bounds)
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return TrunkRows(input_ids, position_ids, {}, _attend_over(SharedForward(slices, position_ids, bounds)))


@contextmanager
def _attend_over(forward: SharedForward) -> Iterator[None]:
    token = _forward.set(forward)
    try:
        with known_packing(True):
            yield
    finally:
        _forward.reset(token)


def cannot_split(causal_lm: nn.Module, count: int, reason: str) -> UserError:
    """Return the error that says why rows of a model cannot be cut into slices."""
    return UserError(
        f"sequence_parallel_size is {count}, and {type(causal_lm).__name__} cannot share rows between so many "
        f"processes: {reason}; set it to another number, or to 1"
    )


def _make_mask(attention: str, *, mask_function: Any, local_size: int | None = None, **how: Any) -> WholeMask:
    """Make the mask of whole rows; what transformers says of the slice's own tokens is passed over."""
    forward = _forward.get()
    slices, positions = forward.slices, forward.slices.repeat(forward.position_ids)
    if "flash" in attention:
        return WholeMask(slices, None, forward.bounds or find_bounds(positions))
    stretches = find_stretches(positions)
    base = causal_mask_function if local_size is None else sliding_window_causal_mask_function(local_size)
    allowed = packed_sequence_compatibility_function(base, positions, stretches)
    if attention == FLEX:
        return WholeMask(slices, causal_block_mask(stretches, allowed, local_size, local_size is None))
    batch, length = positions.shape
    how |= {"batch_size": batch, "q_length": length, "kv_length": length, "allow_is_causal_skip": False}
    return WholeMask(slices, AttentionMaskInterface()[attention](mask_function=allowed, **how))


def _attend(
    attention: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: WholeMask, **how: Any
) -> tuple[Tensor, None]:
    """Attend over whole rows with an n-th of the heads: `[B, heads, S/n, d]` in, `[B, S/n, heads, d]` out."""
    slices, bounds = attention_mask.slices, attention_mask.bounds
    heads = (query.shape[1], key.shape[1])
    if any(number % slices.count for number in heads):
        raise UserError(
            f"sequence_parallel_size is {slices.count}, and a layer has {heads[0]} attention heads and {heads[1]} of "
            "keys and values: set it to a number that divides both"
        )
    whole = [slices.exchange(part, split=1, joined=2) for part in (query, key, value)]  # [B, heads/n, S, d]
    batch, _, length, _ = whole[0].shape
    if bounds is not None:  # all rows end to end, as in `lay_out_rows`
        whole = [part.transpose(0, 1).flatten(1, 2).unsqueeze(0) for part in whole]  # [1, heads/n, B·S, d]
        how |= {f"cu_seq_lens_{side}": bounds.cu_seq_lens for side in "qk"}
        how |= {f"max_length_{side}": bounds.max_length for side in "qk"} | {"position_ids": None}
    output, _ = ALL_ATTENTION_FUNCTIONS[attention](module, *whole, attention_mask.mask, **how)
    return slices.exchange(output.view(batch, length, *output.shape[2:]), split=1, joined=2), None


for _name, _split in SPLIT.items():
    AttentionInterface.register(_split, partial(_attend, _name))
    AttentionMaskInterface.register(_split, partial(_make_mask, _name))
