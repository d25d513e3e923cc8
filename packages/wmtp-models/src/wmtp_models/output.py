"""What a forward of the policy returns."""

from typing import NamedTuple

from torch import Tensor


class MtpOutput(NamedTuple):
    """What a forward returns. A tuple, so that DeepSpeed finds the tensors that its backward hooks belong on.

    Attributes:
        ce: float32 `[B, S, H]`, −log P(target | tokens ≤ t, head h); 0 where not valid.
        valid: bool `[B, S, H]`, where head h has a target at position t.
        values: float32 `[B, S]`, or None without a value head.
        predicted: int64 `[B, S, H]`, every head's most probable token, or None where it was not asked for.
        auxiliary_loss: float32 scalar, what the trunk's own training adds for its routers, coefficient included, over
            the routers of the trunk and of the heads and the tokens that are no padding; None for a trunk without
            routers, with a coefficient of 0, or whose family trains without such a loss.
    """

    ce: Tensor
    valid: Tensor
    values: Tensor | None
    predicted: Tensor | None = None
    auxiliary_loss: Tensor | None = None
