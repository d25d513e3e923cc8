"""The picture for a README: losses, what is kept, and a marked passage, at a glance."""

import io
import re
from textwrap import shorten
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wmtp_core.errors import UserError
from wmtp_lab.report.charts import CHARTS, Kinds, draw, limits_of
from wmtp_lab.report.page import shown_passage
from wmtp_lab.report.passage import SHADES, Passage, Token
from wmtp_lab.report.runs import Run
from wmtp_lab.report.theme import INK, KEEP, MUTED, KindStyle, kind_styles, shade_opacity

_WIDTHS = range(60, 81, 4)  # characters in a line: the widest letters that let a short passage stand whole
Cell = tuple[int, int, str, Token]  # line, column, text without line ends, token


def picture(runs: list[Run]) -> bytes:
    """Return a PNG of the first run that has a passage marked by later heads.

    Raises:
        UserError: no run has one.
    """
    chosen = next(((run, passage) for run in runs if (passage := shown_passage(run))), None)
    if chosen is None:
        raise UserError("--picture: no run has a passage and two heads; train one with data.evaluate, or leave it out")
    run, passage = chosen
    kinds = kind_styles(run.noise_kinds)
    style: Any = {"font.size": 12.5, "font.family": "DejaVu Sans", "text.color": INK, "text.parse_math": False}
    with matplotlib.rc_context(style | dict.fromkeys(["xtick.color", "ytick.color", "axes.labelcolor"], MUTED)):
        figure = Figure(figsize=(16, 7), dpi=120, facecolor="white")
        charts = [(chart, lines) for chart in CHARTS if (lines := chart.lines(run, kinds))]
        loss = next(pair for pair in charts if pair[0].section == "Loss")
        second = next((pair for pair in charts if pair[0].section != "Loss"), charts[-1])
        for bottom, (chart, lines) in zip((0.58, 0.085), (loss, second), strict=True):
            axes = figure.add_axes((0.05, bottom, 0.285, 0.3))
            draw(axes, lines, limits_of(lines, chart.share), chart.share, label_gap=0.085)
            axes.set_title(chart.title, loc="left", fontweight="bold", pad=26)
            axes.text(
                0, 1.045, shorten(chart.note, 62, placeholder=" …"), transform=axes.transAxes, color=MUTED, size=11
            )
        draw_passage(figure.add_axes((0.445, 0.03, 0.545, 0.85)), passage, kinds)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
    """Return characters from the text at `start` to the next white space after it.

    0 where that text goes on with a word.
    """
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
    """Return so many lines, counted from 0 again.

    The first with a share of noise nearest to 40 %, as both must show.
    """
    last = max(line for line, *_ in cells)
    noisy, all_of = [0] * (last + 1), [0] * (last + 1)
    for line, _, text, token in cells:
        all_of[line] += len(text)
        noisy[line] += len(text) * bool(token.kind)
    starts = range(max(1, last + 2 - lines))
    distances = [abs(sum(noisy[s : s + lines]) / max(1, sum(all_of[s : s + lines])) - 0.4) for s in starts]
    start = distances.index(min(distances))
    return [(line - start, column, text, token) for line, column, text, token in cells if start <= line < start + lines]


def draw_passage(axes: Axes, passage: Passage, kinds: Kinds) -> None:
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
            axes.plot(ends, [line + 0.9] * 2, color=style.colour, linestyle=style.line, linewidth=1.8)
        colour = INK if token.shade else MUTED
        axes.text(
            column,
            line + 0.5,
            text,
            family="DejaVu Sans Mono",
            size=size,
            color=colour,
            va="center",
        )
    _draw_legend(axes, passage, {kind: kinds[kind] for *_, token in cells if (kind := token.kind)})


def _headline(passage: Passage) -> str:
    if passage.binary:
        return f"Held-out text: the more of heads 1 to {passage.later_heads} learn a token, the darker"
    return "Held-out text: the more the later heads weigh a token, the darker"


def _draw_legend(axes: Axes, passage: Passage, noise: dict[str, KindStyle]) -> None:
    """Draw one line above the text: how many heads (or what weights) the shades stand for.

    And the kinds of noise in it.
    """
    place, height = 0.0, 1.018
    entries: list[tuple[str, str, float, KindStyle | None]] = [
        ("kept by" if passage.binary else "mean weight", MUTED, 0.0, None),
        *((label, INK, shade_opacity(shade, SHADES), None) for label, shade in passage.legend),
        *((kind, style.colour, 0.0, style) for kind, style in noise.items()),
    ]
    for words, colour, opacity, style in entries:
        text = axes.text(place, height, words, color=colour, transform=axes.transAxes, size=11.5)
        if opacity:
            text.set_bbox({"facecolor": KEEP, "alpha": opacity, "linewidth": 0, "pad": 3})
        extent = text.get_window_extent().transformed(axes.transAxes.inverted())
        if style:
            ends = [extent.x0, extent.x1]
            axes.plot(ends, [height - 0.013] * 2, color=style.colour, linestyle=style.line, linewidth=1.8,
                      transform=axes.transAxes, clip_on=False)  # fmt: skip
        place = extent.x1 + 0.022
