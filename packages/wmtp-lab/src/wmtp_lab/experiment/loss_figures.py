"""Figures of the losses: curves with bands, paired differences, heads, and tokens to the baseline's loss."""

from collections.abc import Mapping
from itertools import product

from matplotlib.figure import Figure

from wmtp_lab.experiment.analysis import AXES, Analysis, Axis, band
from wmtp_lab.experiment.count_models import BIGRAM_TABLE, UNIGRAM_ENTROPY
from wmtp_lab.experiment.interval_plots import draw_band, draw_intervals
from wmtp_lab.experiment.intervals import t_interval
from wmtp_lab.experiment.runs import LOSS
from wmtp_lab.plots import INK, MUTED, clean, headline, new_figure

_UNITS = {"tokens": (1e6, "million tokens"), "FLOP": (1e12, "TFLOP"), "time": (60.0, "minutes")}


def learning_curves(analysis: Analysis) -> Figure:
    """Draw each head's loss of every arm over tokens, FLOP and time, and what counting reaches."""
    losses = analysis.head_losses()
    figure = new_figure(13.5, 1 + 3.4 * len(losses))
    grid = figure.subplots(len(losses), len(AXES), sharex="col", sharey=True, squeeze=False)
    for axes, (loss, axis) in zip(grid.flat, product(losses, AXES), strict=True):
        divisor, unit = _UNITS[axis]
        for arm in analysis.arms_with(loss):
            curves, (color, line) = analysis.curves(arm, loss), analysis.styles[arm]
            x = [analysis.spent(arm, axis, step) / divisor for step in curves[0].steps]
            points = band(curves)
            width = 2.4 if arm == analysis.baseline else 1.4
            axes.plot(x, [point.mean for point in points], line, color=color, linewidth=width, label=arm)
            draw_band(axes, x, points, color, 0.12)
        for name, line in ((UNIGRAM_ENTROPY, ":"), (BIGRAM_TABLE, "-.")):
            axes.axhline(analysis.final(name, loss).mean, color=MUTED, linestyle=line, linewidth=1.6, label=name)
        if loss == losses[-1]:
            axes.set_xlabel(f"{analysis.results.facts['clock']} {unit}" if axis == "time" else unit)
        clean(axes, "y")
    for head, axes in enumerate(grid[:, 0]):
        axes.set_ylabel(f"head {head}, nats per token")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    headline(figure, "Loss of each head on clean held-out text; gray: what counting reaches, at the head's distance")
    return figure


def difference_curves(analysis: Analysis) -> Figure:
    """Draw each arm's loss minus the baseline's over tokens, paired by seed."""
    arms = [arm for arm in analysis.arms if arm != analysis.baseline]
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    figure = new_figure(3.3 * columns + 0.6, 2.3 * rows + 0.8)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    baseline = analysis.curves(analysis.baseline, LOSS)
    x = [step * analysis.tokens_per_step / 1e6 for step in baseline[0].steps]
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(grid.flat, arms, strict=False):
        points, color = band(analysis.curves(arm, LOSS), minus=baseline), analysis.styles[arm].color
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.plot(x, [point.mean for point in points], color=color, linewidth=1.8)
        draw_band(axes, x, points, color, 0.2)
        axes.set_title(arm, loc="left", fontsize=10, color=color, fontweight="bold")
        clean(axes, "y")
    figure.supxlabel("million tokens", color=MUTED, fontsize=10)
    figure.supylabel("nats", color=MUTED, fontsize=10)
    headline(figure, f"The same loss minus {analysis.baseline}'s, paired by seed: below 0 is better")
    return figure


def final_differences(analysis: Analysis) -> Figure:
    """Draw the differences of the next-token loss at equal tokens, FLOP and time."""
    panels: dict[str, tuple[str, Axis]] = {f"at equal {axis}": (LOSS, axis) for axis in AXES}
    figure = _differences(analysis, panels, "nats; left of 0 is better", 12)
    headline(figure, f"Next-token loss on clean held-out text minus {analysis.baseline}'s")
    return figure


def head_differences(analysis: Analysis) -> Figure:
    """Draw differences of each head's loss at equal tokens, for the arms that have that head."""
    panels: dict[str, tuple[str, Axis]] = {f"head {h}": (m, "tokens") for h, m in enumerate(analysis.head_losses())}
    figure = _differences(analysis, panels, "nats", 3.2 * len(panels) + 1.2)
    headline(figure, "Loss of each head minus the baseline's, or the other arm's, at equal tokens: left is better")
    return figure


def _differences(analysis: Analysis, panels: Mapping[str, tuple[str, Axis]], unit: str, width: float) -> Figure:
    """Draw a panel for each metric and axis, all at one scale, and in it a row for each pair of arms."""
    names = {(a, o): a if o == analysis.baseline else f"{a}\nagainst {o}" for a, o in analysis.pairs}
    colors = {name: analysis.styles[arm].color for (arm, _), name in names.items()}
    figure = new_figure(width, 1.6 + 0.42 * len(names))
    grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (title, (metric, axis)) in zip(grid, panels.items(), strict=True):
        axes.axvline(0, color=INK, linewidth=0.8)
        draw_intervals(axes, {names[pair]: d for pair, d in analysis.differences(metric, axis).items()}, colors)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(unit)
    return figure


def tokens_to_baseline(analysis: Analysis) -> Figure:
    """Draw the share of the baseline's tokens that its final loss took; hatched where a seed never reached it."""
    figure = new_figure(9, 1.2 + 0.4 * len(analysis.arms))
    axes = figure.subplots()
    for row, arm in enumerate(analysis.arms):
        color = analysis.styles[arm].color
        shares = analysis.steps_to_baseline(arm, LOSS)
        reached = [share for share in shares if share is not None]
        if len(reached) < len(shares):
            axes.barh(row, 1, color="white", edgecolor=color, hatch="////", height=0.62)
            missed = f"  not reached in {len(shares) - len(reached)} of {len(shares)} seeds"
            axes.text(1, row, missed, va="center", color=MUTED, fontsize=9)
            continue
        interval = t_interval(reached)
        axes.barh(row, interval.mean, color=color, height=0.62)
        if interval.is_bounded:
            axes.plot([interval.low, interval.high], [row, row], color=INK, linewidth=1.4)
        end = max(interval.mean, interval.high if interval.is_bounded else 0)
        above_the_line = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(end + 0.02, row, f"{interval.mean:.2f}", va="center", fontsize=9, bbox=above_the_line)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.45)
    axes.set_yticks(range(len(analysis.arms)), analysis.arms)
    axes.invert_yaxis()
    axes.set_xlabel("share of the baseline's tokens")
    clean(axes, "x")
    headline(figure, "Tokens until the baseline's final loss is reached")
    return figure
