"""What an optimizer step costs: FLOP as torch counts them, interleaved times, and memory; on trained weights.

A step of an arm that has a warm-up is also measured as it is during that, when it selects nothing yet.

Steps are timed apart from the runs: runs stand side by side and disturb one another, interleaving treats all arms
alike. On a CPU the clock is the process's own CPU time, which does not run while somebody else computes.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.distributed as dist

from wmtp_core import UniformWarmup
from wmtp_lab.experiment.processes import LAUNCHER_VARIABLES
from wmtp_lab.experiment.results import Row
from wmtp_lab.measure.flop import count_flop
from wmtp_lab.measure.memory import peak_memory, why_not_measured
from wmtp_lab.measure.stopwatch import clocks, interleaved
from wmtp_models import build_policy
from wmtp_train.algorithms import trainer_class
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.ranks.lifecycle import start_processes
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.run import Run
from wmtp_train.settings.command_line import load_settings

_COUNTED_STEPS = 3
_PREFETCHED_STEPS = 4  # in turn: reading rows is no part of a step's time
_WARM_UP = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

TakeStep = Callable[[int], None]
"""Takes an optimizer step as it is after so many of them, which says whether the selection is in its warm-up."""


def measure_costs(configs: dict[str, Path], rounds: int) -> Iterator[Row]:
    """Measure the costs of a step by arm: `cost/flop`, `cost/seconds` (one row a round) and `cost/peak_bytes`.

    Of an arm with a warm-up also `cost/warm_up_steps`, `cost/warm_up/flop` and `cost/warm_up/seconds`.

    Args:
        configs: for each arm the configuration of a finished run.
        rounds: of the timing.
    """
    here = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if why_not_measured(here) is None:
        for arm, config in configs.items():
            yield Row(arm, None, "cost/peak_bytes", 0, peak_memory(_small_step, partial(_first_step, config), here))
    mesh = start_processes()
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    for arm, config in configs.items():
        run, take_step = trained(config, mesh)
        last = run.settings.steps
        steps[arm, "cost"] = partial(take_step, last)
        rule = run.step.weighting
        if warm_up_steps := min(last, rule.steps if isinstance(rule, UniformWarmup) else 0):
            yield Row(arm, None, "cost/warm_up_steps", 0, warm_up_steps)
            steps[arm, "cost/warm_up"] = partial(take_step, 0)
    for (arm, cost), step in steps.items():
        yield from (Row(arm, None, f"{cost}/flop", n, count_flop(step)) for n in range(_COUNTED_STEPS))
    samples = interleaved({f"{cost} {arm}": step for (arm, cost), step in steps.items()}, rounds, mesh.device)
    for (arm, cost), timed in zip(steps, samples.values(), strict=True):
        clock = clocks(timed)[0]
        yield from (Row(arm, None, f"{cost}/seconds", n, sample[clock]) for n, sample in enumerate(timed))


def trained(config: Path, mesh: Mesh) -> tuple[Run, TakeStep]:
    """Open a finished run with its final weights; its steps see the micro-batches of its first steps, over and over."""
    settings = load_settings(["--config", str(config)])
    model = settings.model.model_copy(update={"source": str(settings.output_dir / "model"), "config": None})
    settings = settings.model_copy(update={"model": model, "resume": False})
    run = Run.open(settings, trainer_class(settings.algo).algorithm, mesh)
    engine = ZeroEngine(run.policy, run.engine_config, settings.optimizer, run.settings.steps, mesh)
    step = replace(run.step, policy=engine)
    loader = run.train.training_batches(mesh, run.micro_batch, settings.seed, {})
    batches = cycle([[next(loader).to(mesh.device) for _ in range(run.accumulation)] for _ in range(_PREFETCHED_STEPS)])

    def take_step(number: int) -> None:
        step.train(engine, next(batches), number)

    return run, take_step


def _first_step(config: Path) -> Callable[[], None]:
    """Return a first optimizer step to be run: its memory is that of activations, gradients and optimizer state."""
    if not dist.is_initialized():
        for name in LAUNCHER_VARIABLES:  # this process is one alone, whatever its parent was
            os.environ.pop(name, None)
    run, take_step = trained(config, start_processes())
    return partial(take_step, run.settings.steps)


def _small_step() -> Callable[[], None]:
    """Return a small forward and backward, which leaves in place what the first one of a process allocates for good."""
    policy = build_policy(_WARM_UP, 64)
    return lambda: policy(torch.arange(16)[None]).ce.sum().backward()
