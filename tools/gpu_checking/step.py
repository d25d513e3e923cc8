"""The benchmark of whole steps, `tools/bench.py --only step`, and what it was to reach."""

from dataclasses import asdict

import torch

from benchmarks.comparison import Comparison
from benchmarks.step_benchmark import step_comparisons
from benchmarks.tables import to_markdown
from gpu_checking.parts import Task
from gpu_checking.record import Record
from gpu_checking.targets import Target, targets_table

FUSED, SEQUENTIAL, SCORED = "mtp-baseline, fused", "mtp-baseline, sequential heads", "rho1, scored"
NEXT_TOKEN = "next token, fused"


def run(record: Record, task: Task) -> None:
    """Compare all algorithms, shape by shape."""
    skipped: dict[str, str] = {}
    for comparison in step_comparisons(
        torch.device(task.device), torch.bfloat16, 2 if task.quick else 5, task.quick, skipped
    ):
        section = f"{to_markdown(comparison)}\n{targets_table(_targets(comparison))}"
        record.put(comparison.title, asdict(comparison), section)
    for what, reason in skipped.items():
        record.miss(what, reason)


def _targets(comparison: Comparison) -> list[Target]:
    targets = [Target.of(comparison, f"{SCORED} / {FUSED}", SCORED, FUSED, 0.90)]
    for name in (FUSED, SEQUENTIAL):
        mine, its = (comparison.measurements.get(n) for n in (name, NEXT_TOKEN))
        if mine is not None and its is not None and mine.pass_flop and its.pass_flop:
            flop = mine.pass_flop / its.pass_flop
            what = f"{name} / {NEXT_TOKEN}, of which FLOP {flop:.2f}"
            targets.append(Target.of(comparison, what, name, NEXT_TOKEN, 1.05 * flop))
    return targets
