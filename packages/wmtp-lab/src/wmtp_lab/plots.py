"""How plots look: colors that color-blind readers tell apart (after Okabe and Ito, and Tol), bare axes, PNG."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

INK, MUTED = "#1c2128", "#68707c"
KEEP = "#2f7fd0"
"""What is kept."""
_HEADS = LinearSegmentedColormap.from_list("heads", ["#1f83c4", "#009e73", "#e69f00", "#d55e00"])
_ARMS = ["#56b4e9", "#2f7fd0", "#0b3d91", "#d55e00", "#8c8c8c", "#b8478a", "#009e73", "#c9a800"]
_MORE_ARMS = ["#7a5cc0", "#ee6677", "#5d4037", "#8a8f2a", "#00b8b0"]
# No blue, which shades what is kept; each color comes with a stroke of its own.
_KINDS = ["#d55e00", "#b8478a", "#009e73", "#c9a800", "#ee6677", "#8a8f2a", "#7a5cc0", "#8c8c8c"]
_STROKES = [("solid", "-"), ("dashed", "--"), ("dotted", ":"), ("double", "-.")]


class KindStyle(NamedTuple):
    """How a kind of noise is drawn: a color, a CSS `text-decoration-style` and a matplotlib line style."""

    color: str
    underline: str
    line: str


class ArmStyle(NamedTuple):
    """How an arm is drawn: a color and a matplotlib line style."""

    color: str
    line: str


def kind_styles(kinds: Iterable[str]) -> dict[str, KindStyle]:
    """Return the same style for a kind wherever it is drawn, given the same set of kinds."""
    return {
        kind: KindStyle(_KINDS[i % len(_KINDS)], *_STROKES[i % len(_STROKES)]) for i, kind in enumerate(sorted(kinds))
    }


def arm_styles(arms: Sequence[str], baseline: str) -> dict[str, ArmStyle]:
    """Return the same style for an arm in every plot: a color of its own for up to 13 arms beside the baseline."""
    others = [arm for arm in arms if arm != baseline]
    solid = [ArmStyle(color, "-") for color in _ARMS] + [ArmStyle(color, "--") for color in _MORE_ARMS]
    looks = solid + [ArmStyle(color, ":") for color in (*_ARMS, *_MORE_ARMS)]
    return {baseline: ArmStyle(INK, "-")} | {arm: looks[i % len(looks)] for i, arm in enumerate(others)}


def head_color(head: int, horizon: int) -> str:
    """Return a head's color: heads are ordered, and so are their colors, from blue to red."""
    return to_hex(_HEADS(head / max(horizon - 1, 1)))


def shade_opacity(shade: int, shades: int) -> float:
    """Return how much of `KEEP` lies behind a token, in [0, 1]; text stays readable on the darkest."""
    return round(0.68 * shade / (shades - 1), 3)


def style(size: float = 10, ink: str = INK, muted: str = MUTED, **more: Any) -> AbstractContextManager[None]:
    """Return a context in which plots are made and drawn.

    Args:
        size: of text, in points.
        ink: color of text.
        muted: color of axes.
        more: other parameters of matplotlib.
    """
    parameters: Any = dict.fromkeys(["xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor"], muted)
    parameters |= {"font.size": size, "font.family": "DejaVu Sans", "text.color": ink, "text.parse_math": False}
    return matplotlib.rc_context(parameters | more)


def new_figure(width: float, height: float) -> Figure:
    """Make a white figure, in inches; draw in `style()`."""
    return Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")


def headline(figure: Figure, title: str) -> None:
    """Set the title of a whole figure, at its left."""
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")


def clean(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Remove the frame, and draw faint lines along one axis."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis=grid, linewidth=0.6, alpha=0.25)
    axes.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same to the byte for the same figure."""
    image = BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
