"""rho1-wmtp: head 0 whole, later heads their top k by signed excess loss (Rho-1, arXiv 2404.07965, equation 3)."""

from dataclasses import dataclass, field

from wmtp_core.targets import shift_to_heads
from wmtp_core.weighting.rule import WeightingInputs
from wmtp_core.weighting.top_k import PointScores, Score, TopKWeighting


def excess_loss_score(inputs: WeightingInputs) -> PointScores:
    """Score by `ce − reference_ce` at the target position.

    Raises:
        UserError: the run has no reference.
    """
    reference_ce = inputs.require_reference_ce("rho1")
    by_target = shift_to_heads(reference_ce, inputs.valid.shape[-1]).flatten(0, 1)  # [B·S, H]
    return lambda positions, ce: ce - by_target[positions]


@dataclass(frozen=True)
class Rho1Weighting(TopKWeighting):
    """Top k by excess loss; see `TopKWeighting` for the arguments."""

    score: Score = field(default_factory=lambda: excess_loss_score, init=False, repr=False)
