"""Colours of the page and of the picture, told apart by colour-blind readers too (after Okabe and Ito, and Tol)."""

from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.colors import LinearSegmentedColormap, to_hex

INK = "#1c2128"
MUTED = "#68707c"
KEEP = "#2f7fd0"
_HEADS = LinearSegmentedColormap.from_list("heads", ["#1f83c4", "#009e73", "#e69f00", "#d55e00"])
# No blue, which shades what is kept; each colour comes with a stroke of its own.
_KIND_COLOURS = ["#d55e00", "#b8478a", "#009e73", "#c9a800", "#ee6677", "#8a8f2a", "#7a5cc0", "#8c8c8c"]
_STROKES = [("solid", "-"), ("dashed", "--"), ("dotted", ":"), ("double", "-.")]


class KindStyle(NamedTuple):
    """How a kind of noise is drawn: a colour, a CSS `text-decoration-style` and a matplotlib line style."""

    colour: str
    underline: str
    line: str


def kind_styles(kinds: Iterable[str]) -> dict[str, KindStyle]:
    """Return the same style for a kind wherever it is drawn, given the same set of kinds."""
    return {
        kind: KindStyle(_KIND_COLOURS[i % len(_KIND_COLOURS)], *_STROKES[i % len(_STROKES)])
        for i, kind in enumerate(sorted(kinds))
    }


def head_colour(head: int, horizon: int) -> str:
    """Return a head's color: heads are ordered, and so are their colors, from blue to red."""
    return to_hex(_HEADS(head / max(horizon - 1, 1)))


def shade_opacity(shade: int, shades: int) -> float:
    """Return how much of `KEEP` lies behind a token, in [0, 1].

    Little enough that text stays readable on the darkest.
    """
    return round(0.68 * shade / (shades - 1), 3)
