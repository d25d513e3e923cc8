import pytest

from wmtp_core import UserError
from wmtp_train.algorithms import TRAINERS, CriticWmtpTrainer, MtpBaselineTrainer, Rho1WmtpTrainer, trainer_class


def test_the_algorithms_by_their_names():
    assert TRAINERS["mtp-baseline"] is MtpBaselineTrainer
    assert TRAINERS["critic-wmtp"] is CriticWmtpTrainer
    assert TRAINERS["rho1-wmtp"] is Rho1WmtpTrainer
    assert [trainer_class(name) for name in TRAINERS] == list(TRAINERS.values())


def test_what_an_algorithm_needs_is_known_before_it_is_built():
    needs = {name: trainer.algorithm for name, trainer in TRAINERS.items()}
    assert [name for name, algorithm in needs.items() if algorithm.needs_reference] == ["rho1-wmtp", "softmax-excess"]
    assert [name for name, algorithm in needs.items() if algorithm.needs_rewards] == ["critic-wmtp"]
    assert [name for name, algorithm in needs.items() if algorithm.needs_token_labels] == ["labelled"]


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="algo is 'rho2-wmtp'; choose one of mtp-baseline, critic-wmtp, rho1-wmtp"):
        trainer_class("rho2-wmtp")
