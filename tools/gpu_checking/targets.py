"""What a benchmark was to reach, beside what it reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.comparison import Comparison
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


def targets_table(targets: Sequence[Target]) -> str:
    """Return a Markdown table of targets."""
    rows = []
    for target in targets:
        reached = DASH if target.found is None else "yes" if target.found.median <= target.most else "**no**"
        found = DASH if target.found is None else target.found.text(2)
        rows.append([target.what, f"{target.most:.2f}", found, reached])
    return markdown_table(["time ratio", "at most", "measured", "reached"], rows)
