"""What an optimizer step costs: FLOP as torch counts them, time in turns, and memory; on trained weights and real rows.

Steps are timed apart from the runs: runs stand side by side and disturb one another, turns fall on all arms alike. On a
CPU the clock is the process's own CPU time, which does not run while somebody else computes.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
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
from wmtp_train.algorithms import trainer_class
from wmtp_train.command_line import load_settings
from wmtp_train.data.loader import TrainLoader
from wmtp_train.processes import device, start_processes

_COUNTED_STEPS = 3
_WARM_UP = StepShape(vocab_size=512, batch=2, length=16, hidden_size=16, layers=2)
_CPU = torch.device("cpu")


def measure_costs(configs: dict[str, Path], rounds: int) -> Iterator[Row]:
    """The costs of a step by arm: `cost/flop`, `cost/seconds` (one row a round) and `cost/peak_bytes`.

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
    steps = {arm: trained_step(config) for arm, config in configs.items()}
    for arm, step in steps.items():
        yield from (Row(arm, None, "cost/flop", n, count_flop(step)) for n in range(_COUNTED_STEPS))
    samples = interleaved(steps, rounds, device())
    for arm, timed in samples.items():
        clock = clocks(timed)[0]
        yield from (Row(arm, None, "cost/seconds", n, sample[clock]) for n, sample in enumerate(timed))


def trained_step(config: Path) -> Callable[[], None]:
    """The optimizer step of a finished run's trainer, on its final weights, over its data from the first rows on."""
    settings = load_settings(["--config", str(config)])
    model = settings.model.model_copy(update={"source": str(settings.output_dir / "model"), "config": None})
    trainer = trainer_class(settings.algo)(settings.model_copy(update={"model": model, "resume": False}))
    trainer.step = settings.steps  # past every warm-up
    data = trainer.inputs.train
    batches = TrainLoader(
        data.prepared, data.scores, trainer.micro_batch, trainer.rank, trainer.world, settings.seed, consumed_samples=0
    )
    trainer.engine.train()

    def step() -> None:
        micro_batches = [next(batches).to(trainer.device) for _ in range(trainer.accumulation)]
        counts = trainer.objective.count_targets(micro_batches, trainer.step)
        for batch in micro_batches:
            trainer.forward_backward(batch, counts)

    return step


def count_flop(operation: Callable[[], Any]) -> int:
    """FLOP of an operation's matrix products, those of attention included."""
    # Attention of which the counter sees every product; and torch counts `addmm`, but not `addmm_`.
    mapping = {torch.ops.aten.addmm_: _addmm_flop}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
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
    return trained_step(config)
