"""Runs of a trainer on several ranks; jobs for `ranks.on_ranks`."""

import os
import random
import signal
from typing import Any

import torch

from wmtp_train.algorithms import TRAINERS
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings


def draw(mesh: Mesh, settings: Settings) -> Any:
    """What a rank draws in a run, and its weights at the start."""
    trainer = TRAINERS[settings.algo](settings, mesh)
    weights = [p.detach().clone() for p in trainer.loop.engine.policy.parameters()]
    return random.random(), float(torch.rand(())), weights


def train(mesh: Mesh, settings: Settings, die_after: int | None = None) -> Any:
    """A run of a trainer, which may end in SIGKILL after a step; its metrics, and this rank's rows of each step."""
    trainer = TRAINERS[settings.algo](settings, mesh)
    rows: dict[int, list[int]] = {}
    loss, train_step = trainer.loop.run.step.loss, trainer.loop.train_step

    def seeing(micro_batch: Any, normalizers: Any) -> Any:
        rows.setdefault(micro_batch.inputs.step, []).extend(micro_batch.batch.row_ids.tolist())
        return loss(micro_batch, normalizers)

    def dying() -> None:
        train_step()
        if trainer.loop.number == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    object.__setattr__(trainer.loop.run.step, "loss", seeing)
    trainer.loop.train_step = dying  # type: ignore[method-assign]
    return trainer.train(), rows
