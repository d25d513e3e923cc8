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
from wmtp_core import HeadWeighting, WeightHint, WeightingInputs
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
"""The parts of a step in their order, and their colours. The loss's forward includes the final norms and the gradients
that it forms ahead; the selection includes its guess and all that is done with the losses."""
_ROWS = 64


class PartClock:
    """Seconds by part: the time from one mark to the next belongs to the part that the latter names."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._last = 0.0

    def start(self) -> None:
        """What came before belongs to no part."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """The part is over. On CUDA this waits for it, so parts do not overlap here as they do in training."""
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class _MarkedWeighting(HeadWeighting):
    """A weighting whose guess, which works inside the loss's forward, is told apart from it."""

    weighting: HeadWeighting
    mark: Mark

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        return self.weighting.compute_head_weights(signals)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint | None:
        guess = self.weighting.guess_weights(signals)
        assert guess is not None, "the rules that are compared can all guess"
        return _MarkedGuess(guess, self.mark, guess.share)


@dataclass(frozen=True)
class _MarkedGuess:
    guess: WeightHint
    mark: Mark
    share: float

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        self.mark("loss forward")
        weights = self.guess(positions, ce)
        self.mark("selection")
        return weights


def measure_parts(
    variant: StepVariant, shape: StepShape, device: torch.device, dtype: torch.dtype, steps: int
) -> dict[str, float]:
    """Mean seconds of each part of a step, after two steps to warm up; batches come from the trainer's own loader."""
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
        step.take(batch.input_ids, batch.document_ids, batch.reference_ce)
        clock.mark("data")
        step()
    return {part: seconds / steps for part, seconds in clock.seconds.items()}


def _mark_inside(policy: MtpForCausalLM, mark: Mark) -> None:
    """Mark where trunk and heads end, forward and backward: a gradient that arrives says that what follows is done."""

    def before_heads(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mark("trunk forward")
        inputs[0].register_hook(lambda _gradient: mark("heads backward"))

    def after_heads(_module: nn.Module, _inputs: tuple[Tensor, ...], _output: Any) -> None:
        mark("heads forward")

    def after_trunk(_module: nn.Module, _inputs: tuple[Tensor, ...], output: ModelOutput) -> None:
        output.last_hidden_state.register_hook(lambda _gradient: mark("loss backward"))

    policy.head_layers.register_forward_pre_hook(before_heads)
    policy.head_layers.register_forward_hook(after_heads)
    policy.causal_lm.base_model.register_forward_hook(after_trunk)


def _batches(shape: StepShape, device: torch.device) -> Iterator[Batch]:
    """Endless batches of random tokens, two documents a row, with scores."""
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
