"""Comparisons as Markdown tables."""

from benchmarks.comparison import Comparison
from wmtp_lab.tables import DASH, markdown_table

LEGEND = (
    "Variants take turns; times are medians (lowest–highest) over the rounds, divided by the first variant's time in "
    "the same round. Memory is the peak beyond inputs, results included. U is one product of all rows with the "
    "unembedding, as torch counted them. Hinted wrong is the share of predictions whose selection was hinted wrong, "
    "and fixed. Error is the largest of loss and gradients against an exact computation on a small shape, by the norm."
)


def to_markdown(comparison: Comparison) -> str:
    """Return a heading and a table with a row for each variant."""
    first = next(iter(comparison.measurements))
    names = list(comparison.measurements)
    columns = {"": names}
    for clock in comparison.clocks:
        columns[f"{clock} time / {first}"] = [comparison.time_ratio(name, clock).text(2) for name in names]
    clock = comparison.clocks[0]
    columns[f"{clock} s"] = [f"{comparison.seconds(name, clock).median:.3g}" for name in names]
    measured = comparison.measurements.values()
    if any(m.peak_bytes is not None for m in measured):
        columns["peak memory"] = [_memory(comparison, name) for name in names]
    if any(m.pass_flop is not None for m in measured):
        columns["FLOP"] = [DASH if m.pass_flop is None else f"{m.pass_flop:.2f} U" for m in measured]
    if any(m.hinted_wrong is not None for m in measured):
        columns["hinted wrong"] = [DASH if m.hinted_wrong is None else f"{m.hinted_wrong:.1%}" for m in measured]
    columns["error"] = [f"{m.error:.0e}" for m in measured]
    table = markdown_table(list(columns), list(zip(*columns.values(), strict=True)))
    positions = comparison.memory_shape.get("positions")
    apart = positions != comparison.shape.get("positions")
    note = [f"(memory with {positions} positions)"] if apart else []
    return "\n".join([f"**{comparison.operation}: {comparison.title}**", *note, "", table, ""])


def _memory(comparison: Comparison, name: str) -> str:
    peak, ratio = comparison.measurements[name].peak_bytes, comparison.memory_ratio(name)
    return DASH if peak is None or ratio is None else f"{peak / 2**20:,.0f} MB ({ratio:.1%})"
