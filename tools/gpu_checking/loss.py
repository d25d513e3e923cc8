"""The benchmark of the loss op, `tools/bench.py --only loss`, and what it was to reach."""

from dataclasses import asdict

import torch

from benchmarks.comparison import Comparison
from benchmarks.loss_benchmark import loss_comparisons
from benchmarks.loss_variants import NAIVE
from benchmarks.peers import PEERS
from benchmarks.tables import LEGEND, to_markdown
from gpu_checking.parts import Task
from gpu_checking.record import Record
from gpu_checking.targets import Target, targets_table

OURS = "ours, rho1"


def run(record: Record, task: Task) -> None:
    """Compare all forms, shape by shape."""
    skipped: dict[str, str] = {}
    record.put("legend", LEGEND, LEGEND)
    for comparison in loss_comparisons(
        torch.device(task.device), torch.bfloat16, 2 if task.quick else 5, task.quick, skipped
    ):
        section = f"{to_markdown(comparison)}\n{targets_table(_targets(comparison))}"
        record.put(comparison.title, asdict(comparison), section)
    for what, reason in skipped.items():
        record.miss(what, reason)


def _targets(comparison: Comparison) -> list[Target]:
    limits = {NAIVE: 0.62} | {name: 1.0 for name in PEERS if name in comparison.measurements}
    return [Target.of(comparison, f"{OURS} / {name}", OURS, name, most) for name, most in limits.items()]
