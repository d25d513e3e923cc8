"""Intervals as plots: bands round curves, and panels of dots with whiskers."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from wmtp_lab.experiment.intervals import Interval
from wmtp_lab.plots import clean


def draw_band(axes: Axes, x: Sequence[float], points: Sequence[Interval], color: str, alpha: float) -> None:
    """Shade the intervals along a curve, where there are seeds enough for one."""
    if points[0].is_bounded:
        ends = [point.low for point in points], [point.high for point in points]
        axes.fill_between(x, *ends, color=color, alpha=alpha, linewidth=0)


def draw_intervals(axes: Axes, intervals: Mapping[str, Interval | None], colors: Mapping[str, str]) -> None:
    """Draw a row for each name from the top: a dot at the mean, a whisker over the interval; nothing for None."""
    for row, (name, interval) in enumerate(intervals.items()):
        if interval is None:
            continue
        color = colors[name]
        if interval.is_bounded:
            axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot([interval.mean], [row], "o", color=color, ms=6.5, markeredgecolor="white", markeredgewidth=0.8)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)
    clean(axes, "x")
