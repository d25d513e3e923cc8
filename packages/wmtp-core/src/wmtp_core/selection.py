"""Which predictions are worth learning: excess loss over the reference, and the exact top k of it.

Rho-1 (arXiv 2404.07965) keeps the tokens of highest excess loss, equation 3; here each selecting head does so by
itself. By default head 0 keeps everything, so that every position with a next token trains between 1 and H tokens.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.distributed_top_k import topk_mask_over_ranks
from wmtp_core.errors import UserError
from wmtp_core.targets import shift_to_heads

Scope = Literal["batch", "sequence"]


def check_k_percent(k_percent: float) -> None:
    """Raise UserError unless `k_percent` is a fraction in (0, 1]; nan is refused too."""
    if not 0 < k_percent <= 1:
        raise UserError(
            f"k_percent is {k_percent}; give the fraction of targets to keep, above 0 and at most 1, like 0.6"
        )


def excess_loss(ce: Tensor, reference_ce: Tensor) -> Tensor:
    """Return the signed excess loss of each prediction over the reference's loss on the same target token.

    Args:
        ce: float32 `[B, S, H]`.
        reference_ce: float32 `[B, S]`, indexed by target position.

    Returns:
        float32 `[B, S, H]`, `ce[b, t, h] − reference_ce[b, t+h+1]`; meaningful where the target is valid.
    """
    return ce - shift_to_heads(reference_ce, ce.shape[-1])


def num_selected(valid_count: Tensor, k_percent: float) -> Tensor:
    """Return how many of n targets the top k keeps: `1 + floor(k·(n−1) + 1e-9)`, and 0 of 0. int64, any shape.

    That is the size of `{x ≥ quantile(x, 1−k)}` on distinct values.
    """
    kept = 1 + (k_percent * (valid_count.double() - 1) + 1e-9).floor().long()
    return kept.masked_fill(valid_count == 0, 0)


def keep_ratio(k_percent: float, horizon: int, from_head: int = 1) -> float:
    """Return what part of all predictions is kept: heads before `from_head` whole, and the top k of each later one."""
    whole = min(from_head, horizon)
    return (whole + (horizon - whole) * k_percent) / horizon


def num_selected_per_head(valid_per_row: Tensor, k_percent: float, scope: Scope, from_head: int) -> Tensor:
    """Return how many targets `select_by_score` keeps of each head, int64 `[H]`.

    Args:
        valid_per_row: int64 `[rows, H]`, the valid targets of every row over all ranks.
        k_percent, scope, from_head: see `select_by_score`.
    """
    per_comparison = valid_per_row.sum(dim=0, keepdim=True) if scope == "batch" else valid_per_row
    counts = num_selected(per_comparison, k_percent).sum(dim=0)
    counts[:from_head] = valid_per_row[:, :from_head].sum(dim=0)
    return counts


def topk_mask(scores: Tensor, valid: Tensor, k_percent: float) -> Tensor:
    """Keep the top k of the valid scores of each row, ties by position (lower first).

    Args:
        scores: float `[G, n]`; NaN counts as the highest, so that it is seen and not hidden.
        valid: bool `[G, n]`.

    Returns:
        bool `[G, n]` with exactly `num_selected` True per row. No host synchronisation.
    """
    # A stable sort keeps equal scores in the order of their positions; the running count passes over invalid ones.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    in_order = valid.gather(-1, order)
    count = num_selected(valid.sum(dim=-1, keepdim=True), k_percent)  # [G, 1]
    kept_in_order = in_order & (in_order.cumsum(dim=-1) <= count)
    return torch.zeros_like(valid).scatter_(-1, order, kept_in_order)


def select_by_score(
    scores: Tensor,
    valid: Tensor,
    k_percent: float,
    scope: Scope = "batch",
    group: dist.ProcessGroup | None = None,
    from_head: int = 1,
) -> Tensor:
    """Keep every valid target of heads before `from_head`, and of each later head the top k by `scores`.

    Args:
        scores: float32 `[B, S, H]`, higher is kept first.
        valid: bool `[B, S, H]`.
        k_percent: fraction in (0, 1].
        scope: "batch" compares over the micro-batch, "sequence" within each row.
        group: the process group over whose ranks a batch extends, rank 0's rows first. None: this process alone. Not
            used by scope "sequence".
        from_head: 1 keeps head 0 whole, the rule of rho1-wmtp; 0 selects there too, as Rho-1 itself does.

    Returns:
        float32 `[B, S, H]` of 0 and 1.
    """
    check_k_percent(k_percent)
    rows, length, _ = valid.shape
    if scope not in ("batch", "sequence"):
        raise UserError(f'scope is {scope!r}; choose "batch" or "sequence"')
    later_scores, later_valid = scores[..., from_head:].float(), valid[..., from_head:]  # [B, S, L] of L heads
    selecting = later_valid.shape[-1]
    if scope == "sequence":
        by_row = topk_mask(
            later_scores.transpose(1, 2).flatten(0, 1), later_valid.transpose(1, 2).flatten(0, 1), k_percent
        )  # [B·L, S]
        later = by_row.view(rows, selecting, length).transpose(1, 2)  # [B, S, L]
    else:
        head_scores, head_valid = (x.permute(2, 0, 1).flatten(1) for x in (later_scores, later_valid))  # [L, B·S]
        if group is None or dist.get_world_size(group) == 1:
            by_head = topk_mask(head_scores, head_valid, k_percent)
        else:
            by_head = topk_mask_over_ranks(head_scores, head_valid, lambda n: num_selected(n, k_percent), group)
        later = by_head.view(selecting, rows, length).permute(1, 2, 0)  # [B, S, L]
    return torch.cat([valid[..., :from_head], later], dim=-1).float()


def select_by_excess(
    ce: Tensor,
    reference_ce: Tensor,
    valid: Tensor,
    k_percent: float,
    scope: Scope = "batch",
    group: dist.ProcessGroup | None = None,
    from_head: int = 1,
) -> Tensor:
    """Apply the rho1 rule to per-token losses: head 0 whole, later heads the top k by signed excess loss.

    Args:
        ce: float32 `[B, S, H]`.
        reference_ce: float32 `[B, S]`, indexed by target position.
        valid: bool `[B, S, H]`.
        k_percent, scope, group, from_head: see `select_by_score`.

    Returns:
        float32 `[B, S, H]` of 0 and 1, without gradient.
    """
    with torch.no_grad():
        return select_by_score(excess_loss(ce, reference_ce), valid, k_percent, scope, group, from_head)


def compute_rho1_stats(weights: Tensor, valid_mask: Tensor) -> dict[str, Tensor]:
    """Return how much was selected, as 0-dim tensors (float32) on the weights' device, without host synchronisation.

    Args:
        weights: `[B, S, H]`; non-zero is selected.
        valid_mask: bool `[B, S, H]`.

    Returns:
        `head_{h}_count`, `head_{h}_ratio` (selected / valid), `selection_ratio` (selected / valid over all heads),
        `avg_heads_per_position` (selected / positions with a valid next token). 0 where nothing is valid.
    """
    selected = ((weights != 0) & valid_mask).sum(dim=(0, 1)).float()  # [H]
    valid = valid_mask.sum(dim=(0, 1)).float()  # [H]
    ratio = selected / valid.clamp(min=1)
    stats = {f"head_{h}_count": selected[h] for h in range(len(selected))}
    stats |= {f"head_{h}_ratio": ratio[h] for h in range(len(selected))}
    stats["selection_ratio"] = selected.sum() / valid.sum().clamp(min=1)
    stats["avg_heads_per_position"] = selected.sum() / valid[0].clamp(min=1)
    return stats
