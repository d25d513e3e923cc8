"""The definitions, on dense logits: what everything faster is held against, and what to read first."""

from typing import Literal

import torch
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.weighted import weighted_mtp_loss
from wmtp_core.selection import check_k_percent, compute_rho1_stats, excess_loss, select_by_excess
from wmtp_core.targets import mtp_targets


def dense_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return −log softmax(logits)[target] in float32.

    Args:
        logits: float `[..., V]`.
        targets: int64 `[...]`.

    Returns:
        float32 `[...]`, 0 where the target is `ignore_index`.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(targets.shape)


def compute_weighted_mtp_loss(
    logits: Tensor,
    target_ids: Tensor,
    head_weights: Tensor,
    horizon: int = 4,
    attention_mask: Tensor | None = None,
    ignore_index: int = -100,
    normalize_by: Literal["valid", "selected"] = "valid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted loss of dense logits: to read, to test against, and to use where memory does not matter.

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


def compute_mtp_selective_weights(
    policy_logits: Tensor, ref_logits: Tensor, labels: Tensor, attention_mask: Tensor, k_percent: float = 0.6
) -> tuple[Tensor, dict[str, Tensor]]:
    """Apply the rho1 rule to dense logits of the policy and of the reference.

    Args:
        policy_logits: `[B, S, H, V]`.
        ref_logits: `[B, S, V]` of a next-token model.
        labels: int64 `[B, S]`, not shifted, -100 where there is nothing to learn.
        attention_mask: `[B, S]`, 0 at padding.
        k_percent: fraction in (0, 1].

    Returns:
        weights float32 `[B, S, H]` of 0 and 1, and 0-dim statistics: those of `compute_rho1_stats`, and for h ≥ 1
        `head_{h}_excess_mean` (over valid targets) and `head_{h}_threshold` (the smallest selected excess; inf where
        nothing is selected).
    """
    check_k_percent(k_percent)
    horizon = policy_logits.shape[2]
    with torch.no_grad():
        targets, valid = mtp_targets(labels, horizon, attention_mask)
        ce = dense_cross_entropy(policy_logits, targets)  # [B, S, H]
        next_tokens, _ = mtp_targets(labels, 1, attention_mask)  # [B, S, 1]
        reference_ce = torch.nn.functional.pad(dense_cross_entropy(ref_logits, next_tokens[..., 0])[:, :-1], (1, 0))
        weights = select_by_excess(ce, reference_ce, valid, k_percent)
        excess = excess_loss(ce, reference_ce)
        stats = compute_rho1_stats(weights, valid)
        for h in range(1, horizon):
            count = valid[..., h].sum().clamp(min=1)
            stats[f"head_{h}_excess_mean"] = excess[..., h].where(valid[..., h], 0).sum() / count
            stats[f"head_{h}_threshold"] = excess[..., h].where(weights[..., h] != 0, torch.inf).min()
    return weights, stats
