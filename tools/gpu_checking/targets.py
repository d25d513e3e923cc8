"""What a benchmark was to reach, beside what it reached."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks.comparison import Comparison
from benchmarks.tables import to_markdown
from gpu_checking.parts import Task
from gpu_checking.record import Record
from wmtp_lab.measure.stopwatch import Spread, ratios
from wmtp_lab.tables import DASH, markdown_table


@dataclass(frozen=True)
class Target:
    """A ratio of times, and the most that it was to be.

    Attributes:
        what: in words.
        most: the target.
        found: round by round; None where one of the two did not run.
    """

    what: str
    most: float
    found: Spread | None

    @classmethod
    def of(cls, comparison: Comparison, what: str, name: str, other: str, most: float) -> "Target":
        """Compare two variants of one shape."""
        mine, its = comparison.measurements.get(name), comparison.measurements.get(other)
        found = None if mine is None or its is None else ratios(mine.samples, its.samples, comparison.clocks[0])
        return cls(what, most, found)


def record_comparisons(
    record: Record,
    compare: Callable[..., Iterable[Comparison]],
    task: Task,
    targets: Callable[[Comparison], Sequence[Target]],
) -> None:
    """Run a benchmark in bfloat16, shape by shape, and record each with what it was to reach.

    Args:
        record: of the part.
        compare: `loss_comparisons` or `step_comparisons`.
        task: what is asked for.
        targets: of a comparison.
    """
    skipped: dict[str, str] = {}
    rounds = 2 if task.quick else 5
    for comparison in compare(torch.device(task.device), torch.bfloat16, rounds, task.quick, skipped):
        section = f"{to_markdown(comparison)}\n{targets_table(targets(comparison))}"
        record.put(comparison.title, asdict(comparison), section)
    for what, reason in skipped.items():
        record.miss(what, reason)


def targets_table(targets: Sequence[Target]) -> str:
    """Return a Markdown table of targets."""
    rows = []
    for target in targets:
        reached = DASH if target.found is None else "yes" if target.found.median <= target.most else "**no**"
        found = DASH if target.found is None else target.found.text(2)
        rows.append([target.what, f"{target.most:.2f}", found, reached])
    return markdown_table(["time ratio", "at most", "measured", "reached"], rows)
