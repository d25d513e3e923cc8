"""How the figures of an experiment are drawn: colours of arms, intervals as dots with whiskers, PNG."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wmtp_lab.experiment.intervals import Interval
from wmtp_lab.report.theme import INK, MUTED

# Told apart by colour-blind readers too, after Okabe and Ito, and Tol; the baseline is the ink.
_ARMS = ["#56b4e9", "#2f7fd0", "#0b3d91", "#d55e00", "#8c8c8c", "#b8478a", "#009e73", "#c9a800"]
_STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "text.parse_math": False,
    **dict.fromkeys(["xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor"], MUTED),
}


def arm_colours(arms: list[str], baseline: str) -> dict[str, str]:
    """Return the same colour for an arm in every figure."""
    others = [arm for arm in arms if arm != baseline]
    return {baseline: INK} | {arm: _ARMS[i % len(_ARMS)] for i, arm in enumerate(others)}


def arm_lines(arms: list[str], baseline: str) -> dict[str, str]:
    """Return a style of line for each arm: arms that share a colour, where there are more arms than colours.

    Differ in it.
    """
    others = [arm for arm in arms if arm != baseline]
    return {baseline: "-"} | {arm: ["-", "--", ":"][i // len(_ARMS) % 3] for i, arm in enumerate(others)}


def new_figure(width: float, height: float) -> Figure:
    """Make a white figure, in inches; draw in `style()`."""
    return Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")


def style() -> AbstractContextManager[None]:
    """Return a context in which figures are made and drawn."""
    return matplotlib.rc_context(_STYLE)


def png(figure: Figure) -> bytes:
    """Return the same to the byte for the same figure."""
    image = BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def clean(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Remove the frame, and draw faint lines along one axis."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis=grid, linewidth=0.6, alpha=0.25)
    axes.set_axisbelow(True)


def draw_intervals(axes: Axes, intervals: Mapping[str, Interval | None], colours: Mapping[str, str]) -> None:
    """Draw a row for each name from the top: a dot at the mean, a whisker over the interval; nothing for None."""
    for row, (name, interval) in enumerate(intervals.items()):
        if interval is None:
            continue
        colour = colours[name]
        if interval.is_bounded:
            axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([interval.mean], [row], "o", color=colour, ms=6.5, markeredgecolor="white", markeredgewidth=0.8)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)
    clean(axes, "x")
