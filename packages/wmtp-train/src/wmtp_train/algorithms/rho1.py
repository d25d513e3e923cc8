"""rho1-wmtp: head 0 learns everything, each later head its top k by signed excess loss over a reference.

Paper: Lin et al., "Not all tokens are what you need for pretraining", arXiv 2404.07965, equations 2 to 4.
Formula: w[b,t,h] = 1 if h = 0 or ce[b,t,h] − reference_ce[b,t+h+1] is among the head's top k, else 0.
Where: wmtp_core.selection.select_by_excess.
"""

from wmtp_core import Rho1Weighting, UniformWarmup
from wmtp_train.ranks.lifecycle import world_group
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


class Rho1WmtpTrainer(BaseWmtpTrainer):
    """Selection by excess loss; needs `reference.scores` or `reference.source`."""

    def __init__(self, settings: Settings) -> None:
        rule = settings.selection
        weighting = Rho1Weighting(rule.k_percent, rule.scope, world_group(), rule.from_head)
        super().__init__(settings, UniformWarmup(weighting, rule.warmup_steps), uses_reference=True)
