"""Runs of a trainer on several ranks; jobs for `forked.on_ranks`."""

import os
import random
import signal
from typing import Any

import torch

from wmtp_train.algorithms import TRAINERS
from wmtp_train.settings.schema import Settings


def draw(rank: int, settings: Settings) -> Any:
    """What a rank draws in a run, and its weights at the start."""
    trainer = TRAINERS[settings.algo](settings)
    weights = [p.detach().clone() for p in trainer.engine.module.parameters()]
    return random.random(), float(torch.rand(())), weights


def train(rank: int, settings: Settings, die_after: int | None = None) -> Any:
    """A run of a trainer, which may end in SIGKILL after a step; its figures, and this rank's rows of each step."""
    trainer = TRAINERS[settings.algo](settings)
    rows: dict[int, list[int]] = {}
    assert trainer.engine.module is trainer.policy  # from here on the objective asks the engine
    loss, train_step = trainer.objective.loss, trainer.train_step

    def seeing(batch: Any, step: int, counts: Any) -> Any:
        rows.setdefault(step, []).extend(batch.row_ids.tolist())
        return loss(batch, step, counts)

    def dying() -> None:
        train_step()
        if trainer.step == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    object.__setattr__(trainer.objective, "loss", seeing)
    trainer.train_step = dying  # type: ignore[method-assign]
    return trainer.train(), rows
