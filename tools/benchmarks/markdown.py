"""Comparisons as Markdown tables."""

from collections.abc import Sequence

from benchmarks.comparison import Comparison
from wmtp_lab.measure.stopwatch import Spread

LEGEND = (
    "Variants take turns; times are medians (lowest–highest) over the rounds, divided by the first variant's time in "
    "the same round. Memory is the peak beyond inputs, results included. U is one product of all rows with the "
    "unembedding, as torch counted them. Hinted wrong is the share of predictions whose selection was hinted wrong, "
    "and fixed. Error is the largest of loss and gradients against an exact computation on a small shape, by the norm."
)


def to_markdown(comparison: Comparison) -> str:
    """Return a heading and a table with a row for each variant."""
    first = next(iter(comparison.measurements))
    columns = {"": list(comparison.measurements)}
    for clock in comparison.clocks:
        ratios = [comparison.time_ratio(name, clock) for name in columns[""]]
        columns[f"{clock} time / {first}"] = [_spread(ratio) for ratio in ratios]
    clock = comparison.clocks[0]
    columns[f"{clock} s"] = [f"{comparison.seconds(name, clock).median:.3g}" for name in columns[""]]
    measured = comparison.measurements.values()
    if any(m.peak_bytes is not None for m in measured):
        columns["peak memory"] = [_memory(comparison, name) for name in columns[""]]
    if any(m.pass_flop is not None for m in measured):
        columns["FLOP"] = ["–" if m.pass_flop is None else f"{m.pass_flop:.2f} U" for m in measured]
    if any(m.hinted_wrong is not None for m in measured):
        columns["hinted wrong"] = ["–" if m.hinted_wrong is None else f"{m.hinted_wrong:.1%}" for m in measured]
    columns["error"] = [f"{m.error:.0e}" for m in measured]
    rows = zip(*columns.values(), strict=True)
    lines = [_row(list(columns)), _row(["---"] + ["--:"] * (len(columns) - 1)), *map(_row, rows)]
    return "\n".join([f"**{comparison.operation}: {comparison.title}**", *_memory_note(comparison), "", *lines, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _memory(comparison: Comparison, name: str) -> str:
    peak, ratio = comparison.measurements[name].peak_bytes, comparison.memory_ratio(name)
    return "–" if peak is None or ratio is None else f"{peak / 2**20:,.0f} MB ({ratio:.1%})"


def _memory_note(comparison: Comparison) -> list[str]:
    positions = comparison.memory_shape.get("positions")
    if positions == comparison.shape.get("positions"):
        return []
    return [f"(memory with {positions} positions)"]
