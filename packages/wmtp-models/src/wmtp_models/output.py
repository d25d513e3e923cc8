"""What a forward of the policy returns."""

from typing import NamedTuple

from torch import Tensor


class MtpOutput(NamedTuple):
    """What a forward returns. A tuple, so that DeepSpeed finds the tensors that its backward hooks belong on.

    Attributes:
        ce: float32 `[B, S, H]`, −log P(target | tokens ≤ t, head h); 0 where not valid. It has a gradient unless heads
            learn from head 0's distribution.
        valid: bool `[B, S, H]`, where head h has a target at position t.
        values: float32 `[B, S]`, or None without a value head.
        predicted: int64 `[B, S, H]`, every head's most probable token, or None where it was not asked for.
        auxiliary_loss: float32 scalar, what the trunk's own training adds for its routers, coefficient included, over
            the routers of the trunk and of the heads and the tokens that are no padding; None for a trunk without
            routers, with a coefficient of 0, or whose family trains without such a loss.
        distilled: float32 `[B, S, H]`, the losses of heads that learn from head 0's distribution, and head 0's
            cross-entropy; None where all learn from the text.
        overlap: float32 `[B, S, H]`, how often every head's draft would be accepted if it were sampled and those before
            it accepted (`wmtp_core.linear_overlap`), 1 for head 0; None where it was not asked for.
    """

    ce: Tensor
    valid: Tensor
    values: Tensor | None
    predicted: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    distilled: Tensor | None = None
    overlap: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """What is weighted and learned, float32 `[B, S, H]`, 0 where not valid."""
        return self.ce if self.distilled is None else self.distilled
