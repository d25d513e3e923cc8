"""mtp-baseline: every prediction of every head counts alike.

Paper: Gloeckle et al., "Better & faster large language models via multi-token prediction", arXiv 2404.19737,
equation 2.
Formula: w[b,t,h] = 1.
Where: wmtp_core.weighting.uniform.
"""

from wmtp_core import UniformWeighting
from wmtp_train.algorithm import Algorithm
from wmtp_train.trainer import BaseWmtpTrainer


class MtpBaselineTrainer(BaseWmtpTrainer):
    """Uniform weights; needs neither a reference nor rewards."""

    algorithm = Algorithm(weighting=lambda settings, mesh: UniformWeighting())
