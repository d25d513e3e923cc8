"""critic-wmtp: predictions of tokens that added more value weigh more."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.advantages import generalized_advantages, value_differences
from wmtp_core.errors import UserError
from wmtp_core.losses.hints import StaticHint
from wmtp_core.targets import shift_to_heads
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, WeightPlan, require_values


@dataclass(frozen=True)
class CriticWeighting(HeadWeighting):
    """Weights by the advantage of the predicted token.

    `transform="softmax"`: at each position n·softmax over its n valid heads of advantage / temperature.
    `transform="exp"`: exp(A/β) of whitened advantages, clipped and rescaled to mean 1 (advantage-weighted regression,
    Peng et al., arXiv 1910.00177).
    """

    discount: float = 0.95
    temperature: float = 0.7
    advantage: Literal["delta", "gae"] = "delta"
    gae_lambda: float = 0.95
    transform: Literal["softmax", "exp"] = "softmax"
    beta: float = 1.0
    clip: float = 5.0
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.advantage not in ("delta", "gae") or self.transform not in ("softmax", "exp"):
            raise UserError(
                f'critic: advantage {self.advantage!r} must be "delta" or "gae", '
                f'transform {self.transform!r} must be "softmax" or "exp"'
            )
        if min(self.temperature, self.beta, self.clip) <= 0:
            raise UserError("critic: temperature, beta and clip must be above 0")

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan weights that look at the value head's estimates alone."""
        return _CriticPlan(self, inputs)


class _CriticPlan(WeightPlan):
    def __init__(self, rule: CriticWeighting, inputs: WeightingInputs) -> None:
        self.rule, self.valid, self.document_ids = rule, inputs.valid, inputs.document_ids
        self.counts = inputs.targets_per_row().sum(dim=0)

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return weights by advantage."""
        return self._of_values(require_values(values, "critic"))

    def hint(self, values: Tensor | None = None) -> StaticHint:
        """Return the weights themselves: values are there before the losses."""
        return StaticHint(self._of_values(require_values(values, "critic")))

    def _of_values(self, values: Tensor) -> Tensor:
        rule = self.rule
        advantages = value_differences(values, rule.discount, self.document_ids)  # [B, S]
        if rule.advantage == "gae":
            advantages = generalized_advantages(advantages, rule.discount, rule.gae_lambda, self.document_ids)
        per_head = shift_to_heads(advantages, self.valid.shape[-1])  # [B, S, H]
        if rule.transform == "softmax":
            return softmax_over_heads(per_head, self.valid, rule.temperature)
        return self._exponential(per_head)

    def _exponential(self, advantages: Tensor) -> Tensor:
        """Return exp(A/β); whitening and the mean of 1 are over all ranks' targets, so that no split matters."""
        masked = advantages.double().where(self.valid, 0)
        count, total, squares = self._sum_over_ranks(
            torch.stack([self.valid.sum().double(), masked.sum(), masked.square().sum()])
        )
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-12).sqrt()
        weights = ((masked - mean) / deviation / self.rule.beta).exp().clamp(max=self.rule.clip).where(self.valid, 0)
        return (weights * count / self._sum_over_ranks(weights.sum()).clamp(min=1e-12)).float()

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        if self.rule.group is not None:
            dist.all_reduce(sums, group=self.rule.group)
        return sums


def softmax_over_heads(scores: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Return `n · softmax(scores / temperature)` over each position's n valid heads, else 0. float32 `[B, S, H]`."""
    shares = (scores.float() / temperature).masked_fill(~valid, -torch.inf).softmax(dim=-1)
    weights = shares * valid.sum(dim=-1, keepdim=True)
    return weights.where(valid, 0)  # a position without any valid head has NaN shares
