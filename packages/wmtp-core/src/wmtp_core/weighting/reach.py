"""reach-wmtp: a draft weighs as much as the chance that a decoder ever comes to it.

Head h's draft is looked at only if those of heads 1 … h−1 were accepted (arXiv 2404.19737, section 3.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from wmtp_core.targets import shift_to_heads
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, WeightPlan


@dataclass(frozen=True)
class ReachWeighting(HeadWeighting):
    """w[t, 0] = 1, and for h ≥ 1 w[t, h] = Π_{1≤j<h} min(1, q_j(x) / p(x)), where the text is x = token t+j+1.

    There p is head 0's probability, which has read the tokens before x, and q_j head j's. A draft of q is accepted with
    probability Σ_x min(p, q) (Leviathan et al., arXiv 2211.17192, theorem 3.5), which is the mean of min(1, q/p) over
    x drawn from p. So on text that the model itself wrote by sampling, the weight is an unbiased estimate of the chance
    that the draft is reached. Where head 0 has no target, as in a prompt that is not learned, no decoder starts, and
    later heads weigh 0.
    """

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan weights that look at the losses alone."""
        return _ReachPlan(inputs.valid)


class _ReachPlan(WeightPlan):
    counts = None

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return the chance that each draft is reached."""
        # [t, j] of head 0's loss of token t+j+1, which it predicts at t+j: one less than the shift of targets.
        verifying = shift_to_heads(pad(ce[..., 0], (1, 0)), ce.shape[-1])[:, :-1]
        accepted = (verifying - ce).clamp(max=0).exp().where(self.valid, 0)  # [B, S, H]; 1 for head 0
        reached = accepted.cumprod(dim=-1)
        first = torch.ones_like(reached[..., :1])
        return torch.cat([first, reached[..., :-1]], dim=-1).where(self.valid, 0)
