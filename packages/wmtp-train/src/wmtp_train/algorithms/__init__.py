"""The algorithms by name. A new one is a class in a file of its own, and a line here."""

from wmtp_core import UserError
from wmtp_train.algorithms.baseline import MtpBaselineTrainer
from wmtp_train.algorithms.controls import LabelledTrainer, RandomTrainer, SoftmaxExcessTrainer
from wmtp_train.algorithms.critic import CriticWmtpTrainer
from wmtp_train.algorithms.reach import ReachWmtpTrainer
from wmtp_train.algorithms.rho1 import Rho1WmtpTrainer
from wmtp_train.trainer import BaseWmtpTrainer

TRAINERS: dict[str, type[BaseWmtpTrainer]] = {
    "mtp-baseline": MtpBaselineTrainer,
    "critic-wmtp": CriticWmtpTrainer,
    "rho1-wmtp": Rho1WmtpTrainer,
    "reach-wmtp": ReachWmtpTrainer,
    "random": RandomTrainer,
    "softmax-excess": SoftmaxExcessTrainer,
    "labelled": LabelledTrainer,
}


def trainer_class(algo: str) -> type[BaseWmtpTrainer]:
    """Return the trainer of that name.

    Raises:
        UserError: there is none; the message has the names there are.
    """
    if algo not in TRAINERS:
        raise UserError(f"algo is {algo!r}; choose one of {', '.join(TRAINERS)}")
    return TRAINERS[algo]


__all__ = [
    "TRAINERS",
    "CriticWmtpTrainer",
    "MtpBaselineTrainer",
    "ReachWmtpTrainer",
    "Rho1WmtpTrainer",
    "trainer_class",
]
