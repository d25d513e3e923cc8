"""From labels to what each head must predict, and where that is defined.

Head `h` (0-based) at position `t` predicts the token at `p = t + h + 1`; head 0 is next-token prediction
(Gloeckle et al., arXiv 2404.19737, equation 2).
"""

import torch
from torch import Tensor

from wmtp_core.errors import UserError


def shift_to_heads(values: Tensor, horizon: int, fill: float = 0) -> Tensor:
    """Index a per-token quantity by target position.

    Args:
        values: `[B, S]`, any dtype.
        horizon: number of heads H, at least 1.
        fill: what stands where the target lies beyond the row.

    Returns:
        `[B, S, H]` of the same dtype, `out[b, t, h] = values[b, t + h + 1]`.
    """
    length = values.shape[1]
    padded = torch.nn.functional.pad(values, (0, horizon), value=fill)  # [B, S+H]
    return torch.stack([padded[:, h + 1 : h + 1 + length] for h in range(horizon)], dim=-1)  # [B, S, H]


def mtp_targets(
    labels: Tensor,
    horizon: int,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Return the target token of every head at every position, and whether there is one.

    A target is valid when its position lies in the row, is attended to, carries a label, and belongs to the same
    packed document as the position that predicts it.

    Args:
        labels: int64 `[B, S]`, not shifted; `ignore_index` marks tokens that nobody learns.
        horizon: number of heads H, at least 1.
        attention_mask: `[B, S]`, 0 at padding.
        document_ids: int64 `[B, S]`; equal numbers within a row mean the same document.
        ignore_index: the label that is never a target.

    Returns:
        targets int64 `[B, S, H]`, `ignore_index` where not valid, and valid bool `[B, S, H]`.
    """
    if labels.ndim != 2:
        raise UserError(
            f"labels must have the shape [B, S], not {list(labels.shape)}: pass them unshifted, one row each"
        )
    if horizon < 1:
        raise UserError(f"horizon is {horizon}; it must be at least 1 (1 is plain next-token prediction)")
    if attention_mask is not None:
        labels = labels.masked_fill(attention_mask == 0, ignore_index)
    targets = shift_to_heads(labels, horizon, fill=ignore_index)  # [B, S, H]
    valid = targets != ignore_index
    if document_ids is not None:
        # Beyond the row the fill may equal a document's id; there `valid` is False already.
        valid &= shift_to_heads(document_ids, horizon, fill=-1) == document_ids.unsqueeze(-1)
    return targets.masked_fill(~valid, ignore_index), valid
