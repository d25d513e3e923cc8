"""Controls for honest experiments: what selection by excess loss is held against. See wmtp_core.weighting.controls."""

from wmtp_core import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting, UniformWarmup
from wmtp_train.ranks.lifecycle import fail_on_all_ranks, world_group
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


class RandomTrainer(BaseWmtpTrainer):
    """As many targets as rho1-wmtp keeps, drawn at random."""

    def __init__(self, settings: Settings) -> None:
        rule = settings.selection
        weighting = RandomWeighting(rule.k_percent, rule.scope, settings.seed, world_group(), rule.from_head)
        super().__init__(settings, UniformWarmup(weighting, rule.warmup_steps))


class SoftmaxExcessTrainer(BaseWmtpTrainer):
    """A softmax of |excess| over heads; needs a reference."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, SoftmaxExcessWeighting(), uses_reference=True)


class LabelledTrainer(BaseWmtpTrainer):
    """What the corpus's own noise labels call clean; needs labelled data."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, LabelledWeighting())
        if not self.inputs.train.prepared.kinds:
            fail_on_all_ranks("labelled needs rows with `noise`: [[start, end, kind], …]; data.train has none")
