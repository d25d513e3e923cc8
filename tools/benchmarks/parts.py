"""Where a training step's time goes, by part."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from benchmarks.step_shape import StepShape
from benchmarks.training import Mark, StepVariant, TrainingStep
from wmtp_core import HeadWeighting, WeightHint, WeightingInputs, WeightPlan
from wmtp_models import MtpForCausalLM
from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.loader import TrainLoader
from wmtp_train.data.packed.prepared import PreparedData

PARTS = {
    "data": "#8c8c8c",
    "reference": "#7a5cc0",
    "trunk forward": "#9cc8ea",
    "heads forward": "#4f9fdb",
    "loss forward": "#1f5f9e",
    "selection": "#e6c200",
    "loss backward": "#a8431c",
    "heads backward": "#d9793f",
    "trunk backward": "#f2b48a",
    "optimizer": "#009e73",
}
"""The parts of a step in their order, and their colors. Trunk is also head 0, its last layer; heads are the later ones,
with their norms. The loss's forward includes the gradients that it forms ahead, and the selection its plan and hint."""
_ROWS = 64


class PartClock:
    """Seconds by part: the time from one mark to the next belongs to the part that the latter names."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._last = 0.0

    def start(self) -> None:
        """Count what came before to no part."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """Return the part is over. On CUDA this waits for it, so parts do not overlap here as they do in training."""
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class _MarkedWeighting(HeadWeighting):
    """A weighting of which all that it does is told apart, also what it does inside the loss's forward."""

    weighting: HeadWeighting
    mark: Mark

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        self.mark("reference")
        plan = _MarkedPlan(self.weighting.plan(inputs), self.mark)
        self.mark("selection")
        return plan


class _MarkedPlan(WeightPlan):
    def __init__(self, plan: WeightPlan, mark: Mark) -> None:
        self.plan, self.mark, self.counts = plan, mark, plan.counts

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        self.mark("loss forward")
        weights = self.plan.weights(ce, values)
        self.mark("selection")
        return weights

    def hint(self, values: Tensor | None = None) -> WeightHint | None:
        hint = self.plan.hint(values)
        assert hint is not None, "the rules that are compared all have hints"
        return _MarkedHint(hint, self.mark, hint.share, hint.wrong)


@dataclass(frozen=True)
class _MarkedHint:
    hint: WeightHint
    mark: Mark
    share: float
    wrong: float

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        self.mark("loss forward")
        weights = self.hint(positions, ce)
        self.mark("selection")
        return weights


def measure_parts(
    variant: StepVariant, shape: StepShape, device: torch.device, dtype: torch.dtype, steps: int
) -> dict[str, float]:
    """Return mean seconds of each part of a step, after two steps to warm up.

    Batches come from the trainer's own loader.
    """
    clock = PartClock(device)
    marked = replace(variant, weighting=_MarkedWeighting(variant.weighting, clock.mark))
    step = TrainingStep(marked, shape, device, dtype, clock.mark)
    _mark_inside(step.policy, clock.mark)
    batches = _batches(shape, device)
    for number in range(steps + 2):
        if number == 2:
            clock.seconds = dict.fromkeys(PARTS, 0.0)
        clock.start()
        batch = next(batches).to(device)
        if step.step.reference is not None:
            batch = replace(batch, reference_ce=None)
        step.batch = replace(batch, rewards=step.batch.rewards)
        clock.mark("data")
        step()
    return {part: seconds / steps for part, seconds in clock.seconds.items()}


def _mark_inside(policy: MtpForCausalLM, mark: Mark) -> None:
    """Mark where trunk and heads end, forward and backward: a gradient that arrives says that what follows is done."""

    before_trunk = "heads backward" if len(policy.heads) else "loss backward"

    def after_trunk(_module: nn.Module, _inputs: tuple[Tensor, ...], output: ModelOutput) -> None:
        mark("trunk forward")
        # Its backward begins when those of the later heads, which ran after it, are done.
        output.last_hidden_state.register_hook(lambda _gradient: mark(before_trunk))

    def after_heads(_module: nn.Module, _inputs: tuple[Any, ...], states: list[Tensor]) -> None:
        mark("heads forward")
        if states:
            states[-1].register_hook(lambda _gradient: mark("loss backward"))

    policy.causal_lm.base_model.register_forward_hook(after_trunk)
    policy.heads.register_forward_hook(after_heads)


def _batches(shape: StepShape, device: torch.device) -> Iterator[Batch]:
    """Return endless batches of random tokens, two documents a row, with scores."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (_ROWS, shape.length), generator=draw).tolist()
    halves = [shape.length // 2, shape.length - shape.length // 2]
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": tokens,
            "labels": tokens,
            "document_lengths": [halves] * _ROWS,
            "document_ids": [[2 * row, 2 * row + 1] for row in range(_ROWS)],
        }
    )
    scores = datasets.Dataset.from_dict(
        {"reference_ce": (10 * torch.rand(_ROWS, shape.length, generator=draw)).tolist()}
    )
    prepared = PreparedData(Path(), rows, {}, shape.length, [], 2 * _ROWS, _ROWS * shape.length, shape.vocab_size - 1)
    return TrainLoader(prepared, scores, shape.batch, 0, 1, 0, 0, pin_memory=device.type == "cuda")
