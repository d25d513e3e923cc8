"""rho1-wmtp: head 0 learns everything, each later head its top k by signed excess loss over a reference.

Paper: Lin et al., "Not all tokens are what you need for pretraining", arXiv 2404.07965, equations 2 to 4.
Formula: w[b,t,h] = 1 if h = 0 or ce[b,t,h] − reference_ce[b,t+h+1] is among the head's top k, else 0.
Where: wmtp_core.weighting.rho1, wmtp_core.selection.
"""

from wmtp_core import HeadWeighting, Rho1Weighting, UniformWarmup
from wmtp_train.algorithm import Algorithm
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


def _weighting(settings: Settings, mesh: Mesh) -> HeadWeighting:
    rule = settings.selection
    return UniformWarmup(
        Rho1Weighting(rule.k_percent, rule.scope, mesh.data_parallel, rule.from_head), rule.warmup_steps
    )


class Rho1WmtpTrainer(BaseWmtpTrainer):
    """Selection by excess loss; needs `reference.scores` or `reference.source`."""

    algorithm = Algorithm(_weighting, needs_reference=True)
