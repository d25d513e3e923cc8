"""What some models do to their logits before the softmax: scale them, or keep them within bounds."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """z → cap · tanh(scale · z / cap), or scale · z without a cap (Gemma 2, arXiv 2408.00118, section 2).

    Attributes:
        scale: positive.
        softcap: the bound on the size of a logit; None: there is none.
    """

    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it leaves logits as they are."""
        return self.scale == 1 and self.softcap is None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the transformed logits, of any shape and dtype; the very same tensor where there is nothing to do."""
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform logits in place, and return them."""
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


IDENTITY = LogitTransform()
