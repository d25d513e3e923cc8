"""The benchmark of whole steps, `tools/bench.py --only step`, and what it was to reach."""

from benchmarks.comparison import Comparison
from benchmarks.step_benchmark import step_comparisons
from gpu_checking.parts import Task
from gpu_checking.record import Record
from gpu_checking.targets import Target, record_comparisons

FUSED, SEQUENTIAL, SCORED = "mtp-baseline, fused", "mtp-baseline, sequential heads", "rho1, scored"
NEXT_TOKEN = "next token, fused"


def run(record: Record, task: Task) -> None:
    """Compare all algorithms, shape by shape."""
    record_comparisons(record, step_comparisons, task, _targets)


def _targets(comparison: Comparison) -> list[Target]:
    targets = [Target.of(comparison, f"{SCORED} / {FUSED}", SCORED, FUSED, 0.90)]
    for name in (FUSED, SEQUENTIAL):
        mine, its = (comparison.measurements.get(n) for n in (name, NEXT_TOKEN))
        if mine is not None and its is not None and mine.pass_flop and its.pass_flop:
            flop = mine.pass_flop / its.pass_flop
            what = f"{name} / {NEXT_TOKEN}, of which FLOP {flop:.2f}"
            targets.append(Target.of(comparison, what, name, NEXT_TOKEN, 1.05 * flop))
    return targets
