"""Controls for honest experiments: what selection by excess loss is held against. See wmtp_core.weighting.controls."""

from wmtp_core import HeadWeighting, LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting, UniformWarmup
from wmtp_train.algorithm import Algorithm
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


def _random(settings: Settings, mesh: Mesh) -> HeadWeighting:
    rule = settings.selection
    weighting = RandomWeighting(rule.k_percent, rule.scope, mesh.data_parallel, rule.from_head, settings.seed)
    return UniformWarmup(weighting, rule.warmup_steps)


class RandomTrainer(BaseWmtpTrainer):
    """As many targets as rho1-wmtp keeps, drawn at random."""

    algorithm = Algorithm(_random)


class SoftmaxExcessTrainer(BaseWmtpTrainer):
    """A softmax of |excess| over heads; needs a reference."""

    algorithm = Algorithm(lambda settings, mesh: SoftmaxExcessWeighting(), needs_reference=True)


class LabelledTrainer(BaseWmtpTrainer):
    """What the corpus's own token labels call clean; needs labeled data."""

    algorithm = Algorithm(lambda settings, mesh: LabelledWeighting(mesh.data_parallel), needs_token_labels=True)
