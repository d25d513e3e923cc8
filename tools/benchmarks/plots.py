"""Comparisons as plots."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.comparison import Comparison
from wmtp_lab.plots import INK, MUTED, clean, png, style

_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # no line runs through a label
_BARS = {"loss": "#2f7fd0", "step": "#009e73"}


def draw_comparisons(comparisons: Sequence[Comparison], caption: str) -> bytes:
    """Return a PNG with a panel for each comparison: median time ratios, with whiskers to the lowest and highest."""
    operations = list(dict.fromkeys(comparison.operation for comparison in comparisons))
    columns = max(sum(c.operation == operation for c in comparisons) for operation in operations)
    with _style():
        figure = Figure(figsize=(1.2 + 4.3 * columns, 0.7 + 2.7 * len(operations)), layout="constrained")
        grid = figure.subplots(len(operations), columns, squeeze=False, sharey="row")
        for axes in grid.flat:
            axes.set_visible(False)
        for row, operation in zip(grid, operations, strict=True):
            for axes, comparison in zip(row, (c for c in comparisons if c.operation == operation), strict=False):
                axes.set_visible(True)
                _draw_ratios(axes, comparison)
        figure.supxlabel(caption, fontsize=8, color=MUTED)
        return png(figure)


def _draw_ratios(axes: Axes, comparison: Comparison) -> None:
    names, clock = list(comparison.measurements), comparison.clocks[0]
    ratios = [comparison.time_ratio(name, clock) for name in names]
    medians = [ratio.median for ratio in ratios]
    whiskers = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
    axes.barh(names, medians, xerr=whiskers, height=0.62, color=_BARS[comparison.operation], ecolor=INK, capsize=2.5)
    for row, ratio in enumerate(ratios):
        axes.text(ratio.high, row, f"  {ratio.median:.2f}", va="center", bbox=_PAPER)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.2 * max(ratio.high for ratio in ratios))
    heading, _, rest = comparison.title.partition(", ")
    axes.set_title(f"{comparison.operation}, {heading}", loc="left", fontsize=11, pad=18)
    axes.text(0, 1.03, rest, transform=axes.transAxes, fontsize=8, color=MUTED)
    axes.set_xlabel(f"{clock} time / {names[0]}")
    _from_the_top(axes)


def draw_parts(parts: dict[str, dict[str, float]], colors: dict[str, str], caption: str) -> bytes:
    """Return a PNG with a bar for each algorithm, stacked from the seconds of its parts."""
    with _style():
        figure = Figure(figsize=(9, 1.3 + 0.55 * len(parts)), layout="constrained")
        axes = figure.subplots()
        for row, (name, seconds) in enumerate(parts.items()):
            left = 0.0
            for part, value in seconds.items():
                axes.barh(name, value, left=left, color=colors[part], height=0.62, label=part)
                left += value
            axes.text(left, row, f" {left:.3g} s", va="center")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        _from_the_top(axes)
        axes.set_xlabel("seconds a step")
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)
        figure.supxlabel(caption, fontsize=8, color=MUTED)
        return png(figure)


def _style() -> AbstractContextManager[None]:
    return style(9, **{"savefig.dpi": 150})


def _from_the_top(axes: Axes) -> None:
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    clean(axes, "x")
