"""Top k by a score: the first heads keep every target, each later head the top k of its targets by some score."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.losses.hints import StreamingTopKHint
from wmtp_core.selection import (
    Scope,
    check_k_percent,
    keep_ratio,
    num_selected_per_head,
    select_by_score,
)
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, WeightPlan
from wmtp_core.weighting.uniform import StaticPlan

PointScores = Callable[[Tensor, Tensor], Tensor]
"""From positions int64 `[n]` (in 0 … B·S−1) and their losses float32 `[n, H]` to scores float32 `[n, H]`."""

Score = Callable[[WeightingInputs], Tensor | PointScores]
"""Says how much each prediction deserves to be learned, higher first: float32 `[B, S, H]` where that is known before
the forward, or a function of each position's losses."""


@dataclass(frozen=True)
class TopKWeighting(HeadWeighting):
    """Weight 1 on what is kept, 0 elsewhere.

    Args:
        score: what the predictions compete by.
        k_percent: fraction in (0, 1] of each selecting head's valid targets that is kept.
        scope: "batch" compares over the micro-batch of all ranks, "sequence" within each row.
        group: over whose ranks a batch extends; None: this process alone.
        from_head: heads before it keep everything. 1 is the rule of rho1-wmtp; with 0 head 0 selects too, as Rho-1
            itself does (arXiv 2404.07965).
    """

    score: Score
    k_percent: float = 0.6
    scope: Scope = "batch"
    group: dist.ProcessGroup | None = None
    from_head: int = 1

    def __post_init__(self) -> None:
        check_k_percent(self.k_percent)

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan the selection; where the score is known ahead, so are the weights."""
        counts = num_selected_per_head(inputs.targets_per_row(), self.k_percent, self.scope, self.from_head)
        scores = self.score(inputs)
        if isinstance(scores, Tensor):
            share = keep_ratio(self.k_percent, inputs.valid.shape[-1], self.from_head)
            plan: WeightPlan = StaticPlan(self.select(scores, inputs.valid), counts, share)
        else:
            plan = _TopKPlan(self, inputs.valid, scores, counts)
        if self.from_head <= 1:
            plan.share_of_later_heads = self.k_percent
        return plan

    def select(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Return weights float32 `[B, S, H]` of 0 and 1 for scores `[B, S, H]`."""
        return select_by_score(scores, valid, self.k_percent, self.scope, self.group, self.from_head)


class _TopKPlan(WeightPlan):
    def __init__(self, rule: TopKWeighting, valid: Tensor, scores: PointScores, counts: Tensor) -> None:
        self.rule, self.valid, self.scores, self.counts = rule, valid, scores, counts

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return 1 where a prediction is kept."""
        positions = torch.arange(ce[..., 0].numel(), device=ce.device)
        scores = self.scores(positions, ce.flatten(0, 1)).view_as(ce)
        return self.rule.select(scores, self.valid)

    def hint(self, values: Tensor | None = None) -> StreamingTopKHint:
        """Return the selection against the k-th score seen so far."""
        return StreamingTopKHint(self.scores, self.valid, self.rule.k_percent, self.rule.from_head)
