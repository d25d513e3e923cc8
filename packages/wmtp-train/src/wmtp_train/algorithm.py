"""What tells one algorithm from another, in a form that can be read before anything is built."""

from collections.abc import Callable
from dataclasses import dataclass

from wmtp_core import HeadWeighting, UserError
from wmtp_train.data.source import Contents
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.step import ValueObjective


@dataclass(frozen=True)
class Algorithm:
    """The parts of a run that an algorithm decides, and what it needs of the others.

    Args:
        weighting: builds the rule that says how much each prediction is worth.
        value_objective: builds what the value head learns from; None: the policy has no value head.
        needs_reference: the weighting looks at `reference_ce`, scored ahead or computed by a live reference.
        needs_rewards: training rows must have a `reward`, or be pairs of `chosen` and `rejected`.
        needs_token_labels: training rows must have labeled tokens.
    """

    weighting: Callable[[Settings, Mesh], HeadWeighting]
    value_objective: Callable[[Settings], ValueObjective] | None = None
    needs_reference: bool = False
    needs_rewards: bool = False
    needs_token_labels: bool = False

    def check_contents(self, contents: Contents, algo: str) -> None:
        """Refuse training rows that lack what the algorithm needs.

        Raises:
            UserError: they do.
        """
        if self.needs_rewards and not (contents.rewards or contents.pairs):
            raise UserError(
                f"{algo} needs rows with a `reward`, or with `chosen` and `rejected`; data.train has neither"
            )
        if self.needs_token_labels and not contents.label_names:
            raise UserError(f"{algo} needs rows with `noise`: [[start, end, kind], …]; data.train has none")
