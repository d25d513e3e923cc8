"""Guesses of head weights for `linear_cross_entropy`: they decide what it costs, never what it gives."""

from collections.abc import Callable

import torch
from torch import Tensor

from wmtp_core.selection import keep_ratio, num_selected


class StaticHint:
    """The weights of a rule that does not look at the policy's losses.

    Args:
        head_weights: float32 `[B, S, H]`.
        share: about how much of them is not 0, at most.
    """

    def __init__(self, head_weights: Tensor, share: float = 1.0) -> None:
        self.head_weights, self.share = head_weights.flatten(0, 1), share  # [P, H]

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        return self.head_weights[positions]


class PointwiseHint:
    """The weights of a rule that looks at each position by itself: of a chunk they are what they will be of the whole.

    Args:
        rule: from positions int64 `[c]` and their losses float32 `[c, H]` to weights float32 `[c, H]`.
    """

    share = 1.0

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.rule = rule

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        return self.rule(positions, ce)


class StreamingTopKHint:
    """The rho1 rule against the k-th excess loss seen so far: chunks are strided, so they all look alike.

    Args:
        targets_reference_ce: float32 `[B, S, H]`, the reference's loss on each prediction's target.
        valid: bool `[B, S, H]`.
        k_percent: fraction in (0, 1].
        from_head: the first head that selects.
    """

    def __init__(self, targets_reference_ce: Tensor, valid: Tensor, k_percent: float, from_head: int = 1) -> None:
        self.reference_ce, self.valid = targets_reference_ce.flatten(0, 1), valid.flatten(0, 1)  # [P, H]
        self.k_percent, self.from_head = k_percent, from_head
        self.share = keep_ratio(k_percent, valid.shape[-1], from_head)
        self.seen = [self.reference_ce[:0]]  # of each chunk so far `[c, H]`: excess of valid targets, −inf elsewhere
        self.seen_valid = self.valid[:0].sum(dim=0)  # [H]
        self.count, self.sorted_count = 0, 0

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        valid = self.valid[positions]  # [c, H]
        excess = (ce - self.reference_ce[positions]).where(valid, -torch.inf)
        self.seen.append(excess)
        self.seen_valid = self.seen_valid + valid.sum(dim=0)
        self.count += len(positions)
        if self.count >= 1.25 * self.sorted_count:  # so that many chunks do not sort the same losses again and again
            self.sorted_count = self.count
            self.seen = [torch.cat(self.seen)]
            last_kept = (num_selected(self.seen_valid, self.k_percent) - 1).clamp(min=0)  # [H]
            self.threshold = self.seen[0].sort(dim=0, descending=True).values.gather(0, last_kept[None])  # [1, H]
        kept = excess >= self.threshold
        kept[:, : self.from_head] = True
        return (kept & valid).float()
