"""Steps whose host waits are counted, on the path that an accelerator takes; also a job for `ranks.on_ranks`."""

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from deepspeed.accelerator import real_accelerator
from pretended_accelerator import PretendedAccelerator
from torch import nn

import wmtp_core.losses.distillation
import wmtp_core.losses.fused
import wmtp_core.losses.gradients
import wmtp_core.losses.logits_chunk
import wmtp_models.heads.sparse_grad_linear
from wmtp_core.losses.compiled_chunk import CompiledChunkedLogits
from wmtp_lab.measure.host_waits import HostWaits
from wmtp_train.algorithms import TRAINERS
from wmtp_train.data.batch import Batch
from wmtp_train.engines.optimizer import build_optimizer
from wmtp_train.loop import Loop
from wmtp_train.metrics.monitors import open_monitors
from wmtp_train.ranks.preemption import raise_if_preempted
from wmtp_train.run import Run

ASKING = (
    wmtp_core.losses.distillation,
    wmtp_core.losses.fused,
    wmtp_core.losses.gradients,
    wmtp_core.losses.logits_chunk,
    wmtp_models.heads.sparse_grad_linear,
)
"""Modules that ask whether a tensor is on an accelerator."""
WARM_UP, STEPS = 2, 2  # DeepSpeed learns in its first steps in which order ZeRO-3 gathers parameters


class PlainEngine:
    """An engine without DeepSpeed: AdamW on the policy itself, of one process."""

    stage, skips_overflow = 0, False

    def __init__(self, run):
        self.policy, self.group, self.accumulation = run.policy, run.mesh.data_parallel, run.accumulation
        self.adamw, self.schedule = build_optimizer(run.policy, run.settings.optimizer, run.settings.steps, fused=False)
        self.seen = 0

    @property
    def learning_rate(self):
        return self.schedule.get_last_lr()[0]

    def __call__(self, *args, **kwargs):
        return self.policy(*args, **kwargs)

    def train(self):
        self.policy.train()

    def backward_and_step(self, loss):
        (loss / self.accumulation).backward()
        self.seen += 1
        if self.seen % self.accumulation:
            return None
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        self.schedule.step()
        return norm


def count_waits(mesh, settings, plain=False, log=False):
    """Waits of one optimizer step between two log intervals, or of a log, by `HostWait.place`.

    Args:
        mesh: the processes.
        settings: of the run.
        plain: without DeepSpeed.
        log: of a log after the steps, and of nothing else.
    """
    waits, to = HostWaits(), Batch.to
    with ExitStack() as patches:
        for module in ASKING:
            patches.enter_context(patch.object(module, "on_accelerator", lambda tensor: True))
        # Interpreted, a GPU's kernels would take minutes; tests/core/losses/test_fused_hints.py counts their waits.
        patches.enter_context(patch.object(CompiledChunkedLogits, "add_beyond", lambda *rows: None))
        patches.enter_context(patch.object(Batch, "to", lambda batch, device: waits.mark(to(batch, device))))
        patches.enter_context(torch.compiler.set_stance("force_eager"))
        if not plain:
            accelerator = PretendedAccelerator(waits.note)
            patches.enter_context(patch.object(real_accelerator, "ds_accelerator", accelerator))
            patches.enter_context(patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        trainer = TRAINERS[settings.algo]
        run = Run.open(settings, trainer.algorithm, mesh) if plain else None
        loop = trainer(settings, mesh).loop if run is None else Loop(run, PlainEngine(run))
        loop.batches = loop.run.train.training_batches(mesh, loop.run.micro_batch, 0, {})
        loop._start_interval()
        waits.mark([loop.engine.policy, *([] if loop.run.step.reference is None else [loop.run.step.reference])])
        for _ in range(WARM_UP):
            loop.train_step()
        waits.found.clear()
        with waits:
            for _ in range(STEPS):
                raise_if_preempted(mesh)
                loop.train_step()
            if log:
                waits.found.clear()
                loop.monitors = open_monitors(settings, mesh, 0)
                loop.log()
        counts = Counter(wait.place for wait in waits.found)
    assert loop.number == WARM_UP + STEPS
    if log:
        return counts
    assert not any(count % STEPS for count in counts.values())
    return Counter({place: count // STEPS for place, count in counts.items()})
