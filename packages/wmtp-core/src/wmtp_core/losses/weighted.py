"""The weighted multi-token loss, from logits and from per-token losses.

loss = (1/H) Σ_h Σ_valid w·ce / N_h, with N_h the number of valid targets of head h over everything that one optimizer
step sees (Gloeckle et al., arXiv 2404.19737, equation 2, with a weight per prediction).
"""

from typing import Literal

from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.dense import dense_cross_entropy
from wmtp_core.targets import mtp_targets


def weighted_mtp_loss(ce: Tensor, head_weights: Tensor, counts: Tensor) -> Tensor:
    """The weighted loss of per-token losses.

    Args:
        ce: float32 `[B, S, H]`, 0 where not valid.
        head_weights: float `[B, S, H]`, 0 where not valid; taken as constants.
        counts: `[H]`, the denominators N_h. A head of count 0 contributes 0.

    Returns:
        A float32 scalar. A target of weight 0 contributes exactly 0 and receives a gradient of exactly 0.
    """
    weights = head_weights.detach()
    per_head = (ce * weights).where(weights != 0, 0).sum(dim=(0, 1))  # [H]; an infinite loss of weight 0 is no loss
    return (per_head / counts.clamp(min=1)).sum() / ce.shape[-1]


def compute_weighted_mtp_loss(
    logits: Tensor,
    target_ids: Tensor,
    head_weights: Tensor,
    horizon: int = 4,
    attention_mask: Tensor | None = None,
    ignore_index: int = -100,
    normalize_by: Literal["valid", "selected"] = "valid",
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss of dense logits: the form to read, to test against, and to use where memory does not matter.

    Args:
        logits: float `[B, S, H, V]`.
        target_ids: int64 `[B, S]`, not shifted; `ignore_index` where there is nothing to learn.
        head_weights: float `[B, S, H]`; ignored where not valid.
        horizon: number of heads H.
        attention_mask: `[B, S]`, 0 at padding.
        normalize_by: "valid" divides each head by its valid targets, "selected" by those of non-zero weight
            (the N·k% of Rho-1, arXiv 2404.07965, equation 4).

    Returns:
        weighted_loss float32 scalar, valid_mask bool `[B, S, H]`, ce_per_head float32 `[B, S, H]` (0 where not valid).

    Raises:
        UserError: shapes that do not fit, or an unknown `normalize_by`.
    """
    if logits.ndim != 4 or logits.shape[:3] != (*target_ids.shape, horizon):
        raise UserError(
            f"logits have the shape {list(logits.shape)}; with target_ids {list(target_ids.shape)} and "
            f"horizon {horizon} they must be [{', '.join(map(str, target_ids.shape))}, {horizon}, V]"
        )
    if head_weights.shape != logits.shape[:3]:
        raise UserError(f"head_weights have the shape {list(head_weights.shape)}; give {list(logits.shape[:3])}")
    if normalize_by not in ("valid", "selected"):
        raise UserError(f'normalize_by is {normalize_by!r}; choose "valid" or "selected"')
    targets, valid = mtp_targets(target_ids, horizon, attention_mask, ignore_index=ignore_index)
    ce = dense_cross_entropy(logits, targets, ignore_index)  # [B, S, H]
    weights = head_weights.masked_fill(~valid, 0)
    counted = valid if normalize_by == "valid" else weights != 0
    return weighted_mtp_loss(ce, weights, counted.sum(dim=(0, 1))), valid, ce
