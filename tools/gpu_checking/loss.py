"""The benchmark of the loss op, `tools/bench.py --only loss`, and what it was to reach."""

from benchmarks.comparison import Comparison
from benchmarks.loss_benchmark import loss_comparisons
from benchmarks.loss_variants import NAIVE
from benchmarks.peers import PEERS
from benchmarks.tables import LEGEND
from gpu_checking.parts import Task
from gpu_checking.record import Record
from gpu_checking.targets import Target, record_comparisons

OURS = "ours, rho1"


def run(record: Record, task: Task) -> None:
    """Compare all forms, shape by shape."""
    record.put("legend", LEGEND, LEGEND)
    record_comparisons(record, loss_comparisons, task, _targets)


def _targets(comparison: Comparison) -> list[Target]:
    limits = {NAIVE: 0.62} | {name: 1.0 for name in PEERS if name in comparison.measurements}
    return [Target.of(comparison, f"{OURS} / {name}", OURS, name, most) for name, most in limits.items()]
