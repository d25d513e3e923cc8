"""What an optimizer step costs: FLOP as torch counts them, time in turns, and memory; on trained weights and real rows.

A step of an arm that has a warm-up is also measured as it is during that, when it selects nothing yet.

Steps are timed apart from the runs: runs stand side by side and disturb one another, turns fall on all arms alike. On a
CPU the clock is the process's own CPU time, which does not run while somebody else computes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_memory, why_not_measured
from benchmarks.step_benchmark import prepare_step
from benchmarks.step_shape import StepShape
from benchmarks.stopwatch import clocks, interleaved
from experimenting.processes import LAUNCHER_VARIABLES
from experimenting.results import Row
from wmtp_core import UniformWarmup
from wmtp_train.algorithms import trainer_class
from wmtp_train.data.batch import Batch
from wmtp_train.data.inputs import training_batches
from wmtp_train.ranks.lifecycle import device, start_processes
from wmtp_train.settings.command_line import load_settings
from wmtp_train.trainer import BaseWmtpTrainer

_COUNTED_STEPS = 3
_PREFETCHED_STEPS = 4  # in turn: reading rows is no part of a step's time
_WARM_UP = StepShape(vocab_size=512, batch=2, length=16, hidden_size=16, layers=2)
_CPU = torch.device("cpu")


def measure_costs(configs: dict[str, Path], rounds: int) -> Iterator[Row]:
    """The costs of a step by arm: `cost/flop`, `cost/seconds` (one row a round) and `cost/peak_bytes`.

    Of an arm with a warm-up also `cost/warm_up_steps`, `cost/warm_up/flop` and `cost/warm_up/seconds`.

    Args:
        configs: for each arm the configuration of a finished run.
        rounds: of the timing.
    """
    here = torch.device("cuda", 0) if torch.cuda.is_available() else _CPU
    if why_not_measured(here) is None:
        warm_up = partial(prepare_step, "mtp-baseline, fused", _WARM_UP, here, torch.float32)
        for arm, config in configs.items():
            yield Row(arm, None, "cost/peak_bytes", 0, peak_memory(warm_up, partial(_first_step, config), here))
    start_processes()
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    for arm, config in configs.items():
        trainer, batches = trained(config)
        last = trainer.settings.steps
        steps[arm, "cost"] = partial(take_step, trainer, batches, last)
        if warm_up_steps := min(last, _warm_up_steps(trainer)):
            yield Row(arm, None, "cost/warm_up_steps", 0, warm_up_steps)
            steps[arm, "cost/warm_up"] = partial(take_step, trainer, batches, 0)
    for (arm, cost), step in steps.items():
        yield from (Row(arm, None, f"{cost}/flop", n, count_flop(step)) for n in range(_COUNTED_STEPS))
    samples = interleaved({f"{cost} {arm}": step for (arm, cost), step in steps.items()}, rounds, device())
    for (arm, cost), timed in zip(steps, samples.values(), strict=True):
        clock = clocks(timed)[0]
        yield from (Row(arm, None, f"{cost}/seconds", n, sample[clock]) for n, sample in enumerate(timed))


def trained(config: Path) -> tuple[BaseWmtpTrainer, Iterator[list[Batch]]]:
    """The trainer of a finished run with its final weights, and the micro-batches of its first steps, over and over."""
    settings = load_settings(["--config", str(config)])
    model = settings.model.model_copy(update={"source": str(settings.output_dir / "model"), "config": None})
    trainer = trainer_class(settings.algo)(settings.model_copy(update={"model": model, "resume": False}))
    loader = training_batches(trainer.inputs.train, settings, trainer.micro_batch, 0)
    trainer.engine.train()
    steps = [[next(loader).to(trainer.device) for _ in range(trainer.accumulation)] for _ in range(_PREFETCHED_STEPS)]
    return trainer, cycle(steps)


def take_step(trainer: BaseWmtpTrainer, batches: Iterator[list[Batch]], number: int) -> None:
    """An optimizer step as it is after so many of them, which says whether the selection is in its warm-up."""
    trainer.step = number
    micro_batches = next(batches)
    counts = trainer.objective.count_targets(micro_batches, number)
    for batch in micro_batches:
        trainer.forward_backward(batch, counts)


def _warm_up_steps(trainer: BaseWmtpTrainer) -> int:
    rule = trainer.objective.weighting
    return rule.steps if isinstance(rule, UniformWarmup) else 0


def count_flop(operation: Callable[[], Any]) -> int:
    """FLOP of an operation's matrix products, those of attention included."""
    # Torch counts `addmm`, but not `addmm_`; nor the products of attention on a CPU, unless they are done one by one.
    mapping = {torch.ops.aten.addmm_: _addmm_flop}
    attention = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with attention, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        operation()
    return int(counter.get_total_flops())


def _addmm_flop(_total: list[int], a: list[int], b: list[int], **_: Any) -> int:
    """Of `[n, k]` and `[k, m]`."""
    return 2 * a[0] * a[1] * b[1]


def _first_step(config: Path) -> Callable[[], None]:
    """A first optimizer step, to be run: its memory is that of activations, gradients and optimizer state."""
    if not dist.is_initialized():
        for name in LAUNCHER_VARIABLES:  # this process is one alone, whatever its parent was
            os.environ.pop(name, None)
    start_processes()
    trainer, batches = trained(config)
    return partial(take_step, trainer, batches, trainer.settings.steps)
