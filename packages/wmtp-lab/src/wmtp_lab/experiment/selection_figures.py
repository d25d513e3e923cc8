"""Figures of what is selected, on labelled noise and on text, and of what that does to drafting."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from wmtp_lab.experiment.analysis import KEPT, PHASES, Analysis
from wmtp_lab.experiment.decoding import ACCEPTED
from wmtp_lab.experiment.interval_plots import draw_intervals
from wmtp_lab.plots import INK, headline, kind_styles, new_figure
from wmtp_lab.report.passage import Passage, read_passage
from wmtp_lab.report.passage_plot import draw_passage, layout

_COLUMNS, _MOST_LINES = 60, 20
_LINE, _WIDTH, _MARGIN = 0.26, 7.6, 0.75
"""In inches: a line, a column of passages, and what is above and below a passage."""


def kept_by_kind(analysis: Analysis) -> Figure | None:
    """Draw a share in each cell: kinds of text down, the thirds of the training of each selecting arm across."""
    arms = analysis.arms_with(f"{KEPT}clean")
    if not arms:
        return None
    kinds = analysis.kinds()
    figure = new_figure(1.6 + 2.3 * len(arms), 1.5 + 0.36 * len(kinds))
    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        phases = [analysis.by_phase(arm, KEPT + kind) for kind in kinds]
        shares = np.array([[np.nan if phase is None else phase.mean for phase in of_kind] for of_kind in phases])
        axes.imshow(shares, cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1.15, aspect="auto")
        for (row, column), value in np.ndenumerate(shares):
            text, color = ("–" if np.isnan(value) else f"{100 * value:.0f}"), ("white" if value > 0.72 else INK)
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_xticks(range(len(PHASES)), ["1st", "2nd", "3rd"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.axhline(0.5, color="white", linewidth=3)  # the clean tokens apart from the noise
        axes.set_title(arm, loc="left", fontsize=10)
    headline(figure, "Kept by heads 1 and up on noisy held-out text, in %, by third of the training")
    return figure


def accepted_drafts(analysis: Analysis) -> Figure | None:
    """Draw accepted drafts per forward by arm, in each way of choosing tokens."""
    arms = analysis.drafting_arms()
    if not arms:
        return None
    colors = {arm: analysis.styles[arm].color for arm in arms}
    figure = new_figure(12.5, 1.6 + 0.36 * len(arms))
    for axes, (name, key) in zip(figure.subplots(1, len(ACCEPTED), sharey=True), ACCEPTED.items(), strict=True):
        axes.axvline(analysis.final(analysis.baseline, key).mean, color=INK, linewidth=0.8, linestyle=":")
        draw_intervals(axes, {arm: analysis.final(arm, key) for arm in arms}, colors)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("accepted drafts per forward")
    title = (
        "Accepted drafts after training, each arm's by itself: no measure of which arm is better (dotted: the baseline)"
    )
    headline(figure, title)
    return figure


def selection_maps(analysis: Analysis) -> Figure | None:
    """Draw the same passage of noisy held-out text, as marked by each arm that does not weigh everything alike."""
    contents = {arm: analysis.results.facts["passages"][arm] for arm in analysis.arms}
    weighing = {arm: content for arm, content in contents.items() if _weighs(content)}
    passages = {arm: read_passage("noisy", content) for arm, content in weighing.items()}
    if not passages:
        return None
    kinds = kind_styles(set[str]().union(*(passage.kinds for passage in passages.values())))
    lines = min(_MOST_LINES, max(map(_lines, passages.values())))
    columns = min(2, len(passages))
    each = lines * _LINE + _MARGIN
    width, height = _WIDTH * columns, each * -(-len(passages) // columns) + 0.3
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    for place, (arm, passage) in enumerate(passages.items()):
        row, column = divmod(place, columns)
        left, bottom = (0.2 + _WIDTH * column) / width, 1 - (row + 1) * each / height - 0.1 / height
        axes = figure.add_axes((left, bottom, (_WIDTH - 0.4) / width, lines * _LINE / height))
        draw_passage(axes, passage, kinds)
        axes.set_ylim(lines, -0.25)
        axes.set_title(arm, loc="left", fontweight="bold", pad=22)
    return figure


def _weighs(content: dict[str, list[list[float | None]]]) -> bool:
    return any(weight not in (None, 1.0) for weights in content["weights"] for weight in weights)


def _lines(passage: Passage) -> int:
    return layout(passage.tokens, _COLUMNS)[-1][0] + 1
