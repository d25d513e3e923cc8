"""Keep packed documents apart.

transformers makes attention block-diagonal where position ids restart, but only when it gets neither an attention mask
nor a cache (`masking_utils.find_packed_sequence_indices`). So isolation travels in the position ids alone here, for
documents and padding alike, and no model in this package is ever handed an attention mask. FlashAttention has no masks:
it is given all rows end to end, as one, and where each document begins there.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmtp_models.trunk.packed_masks import FLEX, find_stretches, known_packing


def infer_layout(
    position_ids: Tensor | None, document_ids: Tensor | None, attention_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return position ids and document ids of packed rows, each from the other where it is missing.

    Args:
        position_ids: int64 `[B, S]`; where given they are trusted, and must restart at every document.
        document_ids: int64 `[B, S]`; equal neighbours belong to one document.
        attention_mask: `[B, S]`, 0 at padding, which becomes a stretch of its own.

    Returns:
        position_ids and document_ids, int64 `[B, S]` or None: both None means one document a row.
    """
    if position_ids is None:
        return _restarting_positions(document_ids, attention_mask), document_ids
    if document_ids is None:
        document_ids = find_stretches(position_ids)
    return position_ids, document_ids


@dataclass(frozen=True)
class DocumentBounds:
    """Where documents begin in the rows of a batch, laid end to end; known on the host, where they were packed.

    Attributes:
        cu_seq_lens: int32 `[documents + 1]`, the first token of each, and B·S; padding is a document, and so is each
            row's part of one. The names are those of transformers' FlashAttentionKwargs.
        max_length: tokens of the longest.
    """

    cu_seq_lens: Tensor
    max_length: int


class TrunkRows(NamedTuple):
    """Rows as a trunk's attention takes them.

    Attributes:
        input_ids: int64 `[B, S]`, or `[1, B·S]` for FlashAttention.
        position_ids: int64 alike; None: a row is one document.
        kwargs: what else its forward is to be given.
        known: is to be entered around its forward.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    kwargs: dict[str, Any]
    known: AbstractContextManager[None]


def lay_out_rows(
    implementation: str, input_ids: Tensor, position_ids: Tensor | None, bounds: DocumentBounds | None
) -> TrunkRows:
    """Prepare rows for one implementation of attention.

    With `bounds` nothing is read from the device. Without them FlashAttention's are found here, and SDPA's masks are
    made when transformers has looked for restarting positions.

    Args:
        implementation: transformers' name.
        input_ids: int64 `[B, S]`.
        position_ids: int64 `[B, S]`, which restart at each document; None: a row is one document.
        bounds: the documents' among these rows.
    """
    rows, length = input_ids.shape
    if "flash" in implementation:
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device).expand(rows, -1)
            ends = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=input_ids.device)
            bounds = DocumentBounds(ends, length)
        elif bounds is None:
            bounds = find_bounds(position_ids)
        kwargs = {f"cu_seq_lens_{side}": bounds.cu_seq_lens for side in "qk"}
        lengths = {f"max_length_{side}": bounds.max_length for side in "qk"}
        flat, flat_positions = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        return TrunkRows(flat, flat_positions, kwargs | lengths, known_packing(True))
    known: AbstractContextManager[None] = nullcontext()
    if position_ids is None:
        known = known_packing(False)
    elif implementation == FLEX:
        known = known_packing(True)  # whether they are or not: another mask function would be another kernel
    elif bounds is not None:
        # Where each row is one document, SDPA needs no mask and rounds otherwise than with one.
        known = known_packing(len(bounds.cu_seq_lens) - 1 > rows)
    return TrunkRows(input_ids, position_ids, {}, known)


def find_bounds(position_ids: Tensor) -> DocumentBounds:
    """Find where documents begin in rows laid end to end; waits for an accelerator.

    Args:
        position_ids: int64 `[B, S]`, which restart at each document.
    """
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=-1) != 1
    end = torch.tensor([position_ids.numel()], device=position_ids.device)
    cu_seq_lens = torch.cat([starts.flatten().nonzero().flatten(), end])
    return DocumentBounds(cu_seq_lens.to(torch.int32), int(cu_seq_lens.diff().max()))


def _restarting_positions(*stretches: Tensor | None) -> Tensor | None:
    """Return 0, 1, 2, … from the start of the row and from wherever one of the tensors `[B, S]` changes value."""
    given = [stretch for stretch in stretches if stretch is not None]
    if not given:
        return None
    changes = torch.stack([stretch.diff(dim=-1) != 0 for stretch in given]).any(dim=0)  # [B, S-1]
    position = torch.arange(given[0].shape[1], device=changes.device)  # [S]
    starts = torch.nn.functional.pad(changes, (1, 0)) * position  # [B, S]
    return position - starts.cummax(dim=-1).values
