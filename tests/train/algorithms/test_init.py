import pytest

from wmtp_core import UserError
from wmtp_train.algorithms import TRAINERS, CriticWmtpTrainer, MtpBaselineTrainer, Rho1WmtpTrainer, trainer_class
from wmtp_train.trainer import BaseWmtpTrainer


def test_the_algorithms_by_their_names():
    assert TRAINERS["mtp-baseline"] is MtpBaselineTrainer
    assert TRAINERS["critic-wmtp"] is CriticWmtpTrainer
    assert TRAINERS["rho1-wmtp"] is Rho1WmtpTrainer
    assert [trainer_class(name) for name in TRAINERS] == list(TRAINERS.values())


def test_an_algorithm_wires_and_overrides_nothing_else():
    for trainer in TRAINERS.values():
        assert issubclass(trainer, BaseWmtpTrainer)
        assert [name for name in vars(trainer) if not name.startswith("__")] == []


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="algo is 'rho2-wmtp'; choose one of mtp-baseline, critic-wmtp, rho1-wmtp"):
        trainer_class("rho2-wmtp")
