"""Trainers that remember their weights, micro-batches of random signals, and two real ranks that work on them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks_that_measure import Answers

from wmtp_core import HeadWeighting, WeightHint, WeightingInputs, WeightPlan, mtp_targets
from wmtp_models import MtpOutput
from wmtp_train.algorithms import TRAINERS
from wmtp_train.data.batch import Batch
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer

HERE = Path(__file__).parent


@pytest.fixture
def random_micro_batch() -> Callable[..., tuple[Batch, MtpOutput, WeightingInputs]]:
    """A batch of 3 rows of 9 tokens in documents, with noise of 2 kinds and rewards, and a policy's answer to it."""

    def make(seed: int, horizon: int = 3, step: int = 0) -> tuple[Batch, MtpOutput, WeightingInputs]:
        draw = torch.Generator().manual_seed(seed)
        shape = (3, 9)

        def integers(high: int) -> torch.Tensor:
            return torch.randint(high, shape, generator=draw)

        document_ids = (integers(4) == 0).long().cumsum(dim=1)
        rewards_of = torch.tensor([0.0, 1.0, float("nan"), 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        batch = Batch(
            input_ids=integers(50),
            labels=integers(50).masked_fill(integers(6) == 0, -100),
            position_ids=integers(9),
            document_ids=document_ids,
            row_ids=torch.arange(3),
            reference_ce=torch.rand(shape, generator=draw) * 4,
            token_labels=integers(3),
            rewards=rewards_of[document_ids],
        )
        valid = mtp_targets(batch.labels, horizon, document_ids=document_ids)[1]
        ce = torch.rand((*shape, horizon), generator=draw).mul(4).where(valid, 0)
        values = integers(4) / 4  # ties
        predicted = torch.randint(2, (*shape, horizon), generator=draw)
        targets = mtp_targets(batch.labels, horizon)[0]
        predicted = predicted.where(torch.rand(predicted.shape, generator=draw) < 0.7, targets)  # right now and then
        inputs = WeightingInputs(
            valid=valid,
            step=step,
            row_ids=batch.row_ids,
            document_ids=document_ids,
            reference_ce=batch.reference_ce,
            token_labels=batch.token_labels,
        )
        overlap = torch.rand(ce.shape, generator=draw)
        overlap[..., 0] = 1
        return batch, MtpOutput(ce, valid, values, predicted, overlap=overlap), inputs

    return make


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


class Remembering(HeadWeighting):
    """A weighting that keeps what it saw (the inputs, and `ce`) and the weights that it gave."""

    def __init__(self, weighting: HeadWeighting) -> None:
        self.weighting = weighting
        self.seen: list[tuple[SimpleNamespace, torch.Tensor]] = []

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        return RememberingPlan(self.weighting.plan(inputs), inputs, self.seen)


class RememberingPlan(WeightPlan):
    def __init__(self, plan: WeightPlan, inputs: WeightingInputs, seen: list[Any]) -> None:
        self.plan, self.inputs, self.seen, self.counts = plan, inputs, seen, plan.counts

    def hint(self, values: torch.Tensor | None = None) -> WeightHint | None:
        return self.plan.hint(values)

    def weights(self, ce: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        weights = self.plan.weights(ce, values)
        self.seen.append((SimpleNamespace(**vars(self.inputs), ce=ce), weights))
        return weights


@pytest.fixture
def make_trainer(processes: Mesh, make_settings: Callable[..., Settings]) -> Callable[..., BaseWmtpTrainer]:
    """A trainer of the settings' algorithm; `trainer.loop.run.step.weighting.seen` has what every batch weighed."""

    def make(*args: Any, **changes: Any) -> BaseWmtpTrainer:
        settings = make_settings(*args, **changes)
        trainer = TRAINERS[settings.algo](settings, processes)
        step = trainer.loop.run.step
        step = replace(step, weighting=Remembering(step.weighting))
        trainer.loop.run = replace(trainer.loop.run, step=step)
        return trainer

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts a file system in memory on a new folder, with mount's options: `size=300k`, or `ro`."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a test that failed may hold files open


@pytest.fixture
def weights_of() -> Callable[[BaseWmtpTrainer], dict[str, torch.Tensor]]:
    """A copy of every weight of a trainer's policy."""
    return lambda trainer: {name: p.detach().clone() for name, p in trainer.loop.engine.policy.named_parameters()}
