"""Keep packed documents apart.

transformers makes attention block-diagonal where position ids restart, but only when it gets neither an attention mask
nor a cache (`masking_utils.find_packed_sequence_indices`). So isolation travels in the position ids alone here, for
documents and padding alike, and no model in this package is ever handed an attention mask.
"""

import torch
from torch import Tensor


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
        steps = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1)
        document_ids = (steps != 1).cumsum(dim=-1)
    return position_ids, document_ids


def _restarting_positions(*stretches: Tensor | None) -> Tensor | None:
    """Return 0, 1, 2, … from the start of the row and from wherever one of the tensors `[B, S]` changes value."""
    given = [stretch for stretch in stretches if stretch is not None]
    if not given:
        return None
    changes = torch.stack([stretch.diff(dim=-1) != 0 for stretch in given]).any(dim=0)  # [B, S-1]
    position = torch.arange(given[0].shape[1], device=changes.device)  # [S]
    starts = torch.nn.functional.pad(changes, (1, 0)) * position  # [B, S]
    return position - starts.cummax(dim=-1).values
