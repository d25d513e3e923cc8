"""reach-wmtp: a prediction weighs as much as the chance that a decoder ever looks at it.

Paper: speculative sampling is Leviathan et al., arXiv 2211.17192, theorem 3.5.
Formula: w[b,t,0] = 1, and for h ≥ 1 w[b,t,h] = Π_{1≤j<h} min(1, exp(ce[b,t+j,0] − ce[b,t,j])).
Where: wmtp_core.weighting.reach.
"""

from wmtp_core import ReachWeighting
from wmtp_train.algorithm import Algorithm
from wmtp_train.trainer import BaseWmtpTrainer


class ReachWmtpTrainer(BaseWmtpTrainer):
    """Weights by the drafts before; on text that the model wrote they are chances. Needs no reference."""

    algorithm = Algorithm(weighting=lambda settings, mesh: ReachWeighting())
