"""What CONTRIBUTING.md says of adding an algorithm, word for word."""

import re
from pathlib import Path

import pytest

from wmtp_core import HeadWeighting, WeightPlan
from wmtp_train.algorithm import Algorithm
from wmtp_train.algorithms import TRAINERS, trainer_class
from wmtp_train.trainer import BaseWmtpTrainer

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


@pytest.fixture
def example(monkeypatch):
    """The code block, run."""
    (block,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(), flags=re.DOTALL)
    trainers = dict(TRAINERS)
    offered = (Algorithm, BaseWmtpTrainer, HeadWeighting, WeightPlan)
    exec(block, {**{part.__name__: part for part in offered}, "TRAINERS": trainers})
    (name,) = trainers.keys() - TRAINERS.keys()
    monkeypatch.setitem(TRAINERS, name, trainers[name])
    return name


def test_it_trains_like_any_other(example, make_trainer):
    name = example
    assert trainer_class(name) is TRAINERS[name]
    trainer = make_trainer(algo=name, steps=15)
    before = trainer.loop.run.evaluate(trainer.loop.number)["held_out/ce/head_0"]
    assert trainer.train()["held_out/ce/head_0"] < before
    for signals, weights in trainer.loop.run.step.weighting.seen:
        for ce, valid, weight in zip(
            signals.ce.view(-1, 3), signals.valid.view(-1, 3), weights.view(-1, 3), strict=True
        ):
            assert weight.tolist() == [float(bool(v) and c == max(ce)) for c, v in zip(ce, valid, strict=True)]
