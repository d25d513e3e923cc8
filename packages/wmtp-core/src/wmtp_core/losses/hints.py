"""Hints of head weights for `linear_cross_entropy`: they decide what it costs, never what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wmtp_core.selection import keep_ratio, num_selected


class WeightHint(Protocol):
    """Says what the head weights will probably be, chunk by chunk, while the losses come in."""

    share: float
    """About the share of all predictions that it keeps at most: more of a chunk than that is not formed ahead."""
    wrong: float
    """About the share of all predictions that it gets wrong, or keeps and are not formed ahead, at most."""

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return the weights of some positions.

        It is called once for every chunk of a forward; a chunk is strided, so that it samples the whole batch.

        Args:
            positions: int64 `[c]`, in 0 … P−1.
            ce: float32 `[c, H]`, their losses.

        Returns:
            float32 `[c, H]`.
        """
        ...


@dataclass(frozen=True)
class GradientHint:
    """What gradient each loss will probably receive: `weights · per_head`, up to one factor common to all."""

    weights: WeightHint
    per_head: Tensor
    """float32 `[H]`, such as one over each head's number of targets."""


class StaticHint:
    """The weights of a rule that does not look at the policy's losses.

    Args:
        head_weights: float32 `[B, S, H]`.
        share: about how much of them is not 0, at most.
    """

    def __init__(self, head_weights: Tensor, share: float = 1.0) -> None:
        self.head_weights, self.share = head_weights.flatten(0, 1), share  # [P, H]
        # It says what comes, but for rounding; of a smaller share some chunks hold more than are formed ahead.
        self.wrong = 1 / 256 if share == 1 else 1 / 64

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return the known weights."""
        return self.head_weights[positions]


class PointwiseHint:
    """The weights of a rule that looks at each position by itself: of a chunk they are what they will be of the whole.

    Args:
        rule: from positions int64 `[c]` and their losses float32 `[c, H]` to weights float32 `[c, H]`.
    """

    share, wrong = 1.0, 1 / 256

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.rule = rule

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return the rule's weights."""
        return self.rule(positions, ce)


class StreamingTopKHint:
    """Top k by a score, against the k-th score seen so far: chunks are strided, so they all look alike.

    While training, about 1 % of all predictions were on the wrong side of it, and seldom 2 %.

    Args:
        scores: from positions int64 `[c]` and their losses float32 `[c, H]` to scores float32 `[c, H]`.
        valid: bool `[B, S, H]`.
        k_percent: fraction in (0, 1].
        from_head: the first head that selects.
    """

    wrong = 1 / 32

    def __init__(
        self, scores: Callable[[Tensor, Tensor], Tensor], valid: Tensor, k_percent: float, from_head: int = 1
    ) -> None:
        self.scores, self.valid = scores, valid.flatten(0, 1)  # [P, H]
        self.k_percent, self.from_head = k_percent, from_head
        self.share = keep_ratio(k_percent, valid.shape[-1], from_head)
        self.seen: list[Tensor] = []  # of each chunk so far `[c, H]`: scores of valid targets, −inf elsewhere
        self.seen_valid = self.valid[:0].sum(dim=0)  # [H]
        self.count, self.sorted_count = 0, 0

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return 1 where a score reaches the k-th so far."""
        valid = self.valid[positions]  # [c, H]
        scores = self.scores(positions, ce).where(valid, -torch.inf)
        self.seen.append(scores)
        self.seen_valid = self.seen_valid + valid.sum(dim=0)
        self.count += len(positions)
        if self.count >= 1.25 * self.sorted_count:  # so that many chunks do not sort the same scores again and again
            self.sorted_count = self.count
            self.seen = [torch.cat(self.seen)]
            last_kept = (num_selected(self.seen_valid, self.k_percent) - 1).clamp(min=0)  # [H]
            self.threshold = self.seen[0].sort(dim=0, descending=True).values.gather(0, last_kept[None])  # [1, H]
        kept = scores >= self.threshold
        kept[:, : self.from_head] = True
        return (kept & valid).float()
