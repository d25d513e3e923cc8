"""mtp-baseline: every prediction of every head weighs alike.

Paper: Gloeckle et al., "Better & faster large language models via multi-token prediction", arXiv 2404.19737.
Formula: w[b,t,h] = 1 on valid targets.
Where: wmtp_core.weighting.rule.UniformWeighting.
"""

from wmtp_core import UniformWeighting
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


class MtpBaselineTrainer(BaseWmtpTrainer):
    """Uniform weights; needs neither a reference nor rewards."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, UniformWeighting())
