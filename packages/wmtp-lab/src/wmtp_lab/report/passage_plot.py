"""A marked passage as a plot: text in lines, shades behind its tokens, and noise underlined."""

import re
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from wmtp_lab.plots import INK, KEEP, MUTED, KindStyle, shade_opacity
from wmtp_lab.report.passage import SHADES, Passage, Token

_WIDTHS = range(60, 81, 4)  # characters in a line: the widest letters that let a short passage stand whole
Cell = tuple[int, int, str, Token]  # line, column, text without line ends, token


def layout(tokens: list[Token], columns: int) -> list[Cell]:
    """Return tokens on a grid of characters, wrapped at `columns`, before a word where it is no longer than a line."""
    cells: list[Cell] = []
    line = column = 0
    parts = [(part, token) for token in tokens for part in re.findall(r"[^\n]*\n|[^\n]+", token.text.expandtabs(4))]
    texts = [part for part, _ in parts]
    for i, (part, token) in enumerate(parts):
        starts_document = token.starts_document and (i == 0 or parts[i - 1][1] is not token)
        if column and (starts_document or columns - column < _word_length(texts, i) <= columns):
            line, column = line + 1, 0
        text = part.rstrip("\n")
        while text:
            if column == columns:
                line, column = line + 1, 0
            cells.append((line, column, text[: columns - column], token))
            text, column = text[columns - column :], min(columns, column + len(text))
        if part.endswith("\n"):
            line, column = line + 1, 0
    return cells


def _word_length(texts: list[str], start: int) -> int:
    """Return how many characters the text at `start` has up to white space; 0 where it goes on with a word."""
    if start and not texts[start - 1][-1].isspace() and not texts[start][0].isspace():
        return 0
    length = 0
    for i in range(start, len(texts)):
        if i > start and texts[i][0].isspace():
            break
        length += len(texts[i].rstrip("\n"))
        if texts[i][-1].isspace():
            break
    return length


def window(cells: list[Cell], lines: int) -> list[Cell]:
    """Return `lines` lines, counted from 0 again: the first with a share of noise nearest to 40 %, to show both."""
    last = max(line for line, *_ in cells)
    noisy, all_of = [0] * (last + 1), [0] * (last + 1)
    for line, _, text, token in cells:
        all_of[line] += len(text)
        noisy[line] += len(text) * bool(token.kind)
    starts = range(max(1, last + 2 - lines))
    distances = [abs(sum(noisy[s : s + lines]) / max(1, sum(all_of[s : s + lines])) - 0.4) for s in starts]
    start = distances.index(min(distances))
    return [(line - start, column, text, token) for line, column, text, token in cells if start <= line < start + lines]


def draw_passage(axes: Axes, passage: Passage, kinds: Mapping[str, KindStyle]) -> None:
    """Draw a marked passage as text, or that part of it which fits and shows most, with its legend above."""
    for columns in _WIDTHS:
        lines = columns // 3
        cells = layout(passage.tokens, columns)
        if cells[-1][0] < lines:
            break
    cells = window(cells, lines)
    axes.set_xlim(0, columns)
    axes.set_ylim(lines, 0)
    axes.axis("off")
    axes.set_title(_headline(passage), loc="left", fontweight="bold", pad=26)
    # The advance of DejaVu Sans Mono is 0.602 of its size; points are 1/72 inch.
    size = axes.get_window_extent().width / columns / 0.602 * 72 / axes.figure.dpi
    for line, column, text, token in cells:
        if token.shade:
            place = Rectangle((column, line + 0.04), len(text), 0.9, color=KEEP, linewidth=0)
            place.set_alpha(shade_opacity(token.shade, SHADES))
            axes.add_patch(place)
        if token.kind:
            style = kinds[token.kind]
            ends = [column + 0.1, column + len(text) - 0.1]
            axes.plot(ends, [line + 0.9] * 2, color=style.color, linestyle=style.line, linewidth=1.8)
        look: Any = {"family": "DejaVu Sans Mono", "size": size, "color": INK if token.shade else MUTED}
        axes.text(column, line + 0.5, text, va="center", **look)
    _draw_legend(axes, passage, {kind: kinds[kind] for *_, token in cells if (kind := token.kind)})


def _headline(passage: Passage) -> str:
    if passage.binary:
        return f"Held-out text: the more of heads 1 to {passage.later_heads} learn a token, the darker"
    return "Held-out text: the more the later heads weigh a token, the darker"


def _draw_legend(axes: Axes, passage: Passage, noise: dict[str, KindStyle]) -> None:
    """Draw a line above the text: how many heads (or what weights) the shades stand for, and the kinds of noise."""
    place, height = 0.0, 1.018
    entries: list[tuple[str, str, float, KindStyle | None]] = [
        ("kept by" if passage.binary else "mean weight", MUTED, 0.0, None),
        *((label, INK, shade_opacity(shade, SHADES), None) for label, shade in passage.legend),
        *((kind, style.color, 0.0, style) for kind, style in noise.items()),
    ]
    for words, color, opacity, style in entries:
        text = axes.text(place, height, words, color=color, transform=axes.transAxes, size=11.5)
        if opacity:
            text.set_bbox({"facecolor": KEEP, "alpha": opacity, "linewidth": 0, "pad": 3})
        extent = text.get_window_extent().transformed(axes.transAxes.inverted())
        if style:
            ends = [extent.x0, extent.x1]
            axes.plot(ends, [height - 0.013] * 2, color=style.color, linestyle=style.line, linewidth=1.8,
                      transform=axes.transAxes, clip_on=False)  # fmt: skip
        place = extent.x1 + 0.022
