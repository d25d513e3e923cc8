"""Every prediction counts alike: mtp-baseline, and the warm-up of other rules."""

from dataclasses import dataclass

from torch import Tensor

from wmtp_core.losses.hints import StaticHint
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, WeightPlan


class StaticPlan(WeightPlan):
    """Weights that are known before the forward.

    Args:
        head_weights: float32 `[B, S, H]`.
        counts: int64 `[H]`.
        share: about how much of them is not 0, at most.
    """

    def __init__(self, head_weights: Tensor, counts: Tensor, share: float = 1.0) -> None:
        self.head_weights, self.counts, self.share = head_weights, counts, share

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return the weights that were given."""
        return self.head_weights

    def hint(self, values: Tensor | None = None) -> StaticHint:
        """Return the weights themselves."""
        return StaticHint(self.head_weights, self.share)


@dataclass(frozen=True)
class UniformWeighting(HeadWeighting):
    """mtp-baseline: weight 1 on every valid target (Gloeckle et al., arXiv 2404.19737)."""

    def plan(self, inputs: WeightingInputs) -> StaticPlan:
        """Plan weight 1 on every valid target."""
        return StaticPlan(inputs.valid.float(), inputs.targets_per_row().sum(dim=0))


@dataclass(frozen=True)
class UniformWarmup(HeadWeighting):
    """Weight 1 on every valid target for the first `steps`, then another rule: one that looks at what a model says of
    a text has little to go by before the model has learned anything."""

    rule: HeadWeighting
    steps: int

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan as the rule of this step does."""
        return (UniformWeighting() if inputs.step < self.steps else self.rule).plan(inputs)
