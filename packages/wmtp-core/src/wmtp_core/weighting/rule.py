"""What a weighting rule is: from what is known before a forward to a plan of the weights after it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.hints import GradientHint, WeightHint


@dataclass(frozen=True)
class WeightingInputs:
    """What is known of one micro-batch before its forward. Optional ones are None where the run has none."""

    valid: Tensor
    """bool `[B, S, H]`."""
    step: int
    """The optimizer step, from 0."""
    row_ids: Tensor
    """int64 `[B]`, which row of the data each row is: the same whatever the number of processes."""
    document_ids: Tensor | None = None
    """int64 `[B, S]`."""
    reference_ce: Tensor | None = None
    """float32 `[B, S]`, indexed by target position."""
    token_labels: Tensor | None = None
    """int64 `[B, S]`, the corpus's own notes on its tokens: 0 unlabeled (clean), else the label."""
    valid_per_row: Tensor | None = None
    """int64 `[R·B, H]`, the valid targets of every row over all ranks, rank 0's first; None: this process is alone."""

    def targets_per_row(self) -> Tensor:
        """Return the valid targets of every row over all ranks, int64 `[R·B, H]`."""
        return self.valid.sum(dim=1) if self.valid_per_row is None else self.valid_per_row

    def require_reference_ce(self, rule: str) -> Tensor:
        """Return `reference_ce`; a UserError names the rule that needs it."""
        return _required(self.reference_ce, rule, "reference_ce")

    def require_token_labels(self, rule: str) -> Tensor:
        """Return `token_labels`; a UserError names the rule that needs them."""
        return _required(self.token_labels, rule, "token labels")


class WeightPlan(ABC):
    """What a rule makes of one micro-batch.

    Attributes:
        counts: int64 `[H]`, how many targets each head will keep over all ranks; None: that depends on the forward.
        share_of_later_heads: about the share of its predictions that each head after the first keeps, at most. It
            makes the backward of their layers cheaper on a GPU, and never other.
    """

    counts: Tensor | None
    share_of_later_heads: float = 1.0

    @abstractmethod
    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return how much each prediction is worth.

        Args:
            ce: float32 `[B, S, H]`, detached, 0 where not valid.
            values: float32 `[B, S]`, the value head's V_t, detached; None without a value head.

        Returns:
            float32 `[B, S, H]` without gradient, 0 where not valid.
        """

    def hint(self, values: Tensor | None = None) -> WeightHint | None:
        """Return what the weights will be, as far as that can be told while the losses come in. By default nothing.

        A hint lets the fused loss form gradients while it has the logits at hand; it never changes a result.
        """
        return None


class HeadWeighting(ABC):
    """A rule that says how much each prediction is worth."""

    @abstractmethod
    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan the weights of a micro-batch, before its forward."""


@dataclass(frozen=True)
class GradientPlan:
    """A plan of weights, and what else a loss's gradient is made of: what a policy's forward is given.

    Attributes:
        plan: of the micro-batch's weights.
        per_head: float32 `[H]`, such as one over each head's number of targets.
    """

    plan: WeightPlan
    per_head: Tensor

    def hint(self, values: Tensor | None) -> GradientHint | None:
        """Return what gradient the losses will probably receive, given the value head's estimates."""
        weights = self.plan.hint(values)
        return None if weights is None else GradientHint(weights, self.per_head)


def require_values(values: Tensor | None, rule: str) -> Tensor:
    """Return the values; a UserError names the rule that needs them."""
    return _required(values, rule, "a value head")


def _required(found: Tensor | None, rule: str, name: str) -> Tensor:
    if found is None:
        raise UserError(f"the {rule} rule needs {name}, and the run has none: give it what computes it")
    return found
