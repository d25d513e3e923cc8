"""Figures of the losses: curves with bands, paired differences, heads, and tokens to the baseline's loss."""

from itertools import product

from matplotlib.figure import Figure

from wmtp_lab.experiment.analysis import AXES, Analysis, Axis, band
from wmtp_lab.experiment.drawing import arm_colours, arm_lines, clean, draw_intervals, new_figure
from wmtp_lab.experiment.intervals import t_interval
from wmtp_lab.experiment.runs import LOSS
from wmtp_lab.report.theme import INK, MUTED

_UNITS = {"tokens": (1e6, "million tokens"), "FLOP": (1e12, "TFLOP"), "time": (60.0, "minutes")}


def learning_curves(analysis: Analysis) -> Figure:
    """Draw each head's loss of every arm over tokens, FLOP and time.

    From the first evaluation after the common start.
    """
    colours, lines = (of(analysis.arms, analysis.baseline) for of in (arm_colours, arm_lines))
    losses = analysis.head_losses()
    figure = new_figure(13.5, 1 + 3.4 * len(losses))
    grid = figure.subplots(len(losses), len(AXES), sharex="col", sharey="row", squeeze=False)
    for axes, (loss, axis) in zip(grid.flat, product(losses, AXES), strict=True):
        divisor, unit = _UNITS[axis]
        for arm in analysis.arms_with(loss):
            curves = analysis.curves(arm, loss)
            x = [analysis.spent(arm, axis, step) / divisor for step in curves[0].steps[1:]]
            points = band(curves)[1:]
            width = 2.4 if arm == analysis.baseline else 1.4
            means = [point.mean for point in points]
            axes.plot(x, means, lines[arm], color=colours[arm], linewidth=width, label=arm)
            if points[0].is_bounded:
                ends = [point.low for point in points], [point.high for point in points]
                axes.fill_between(x, *ends, color=colours[arm], alpha=0.12, linewidth=0)
        if loss == losses[-1]:
            axes.set_xlabel(_with_clock(unit, axis, analysis))
        clean(axes, "y")
    for head, axes in enumerate(grid[:, 0]):
        axes.set_ylabel(f"head {head}, nats per token")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle("Loss of each head on clean held-out text", x=0.01, ha="left", fontweight="bold")
    return figure


def difference_curves(analysis: Analysis) -> Figure:
    """Draw each arm's loss minus the baseline's over tokens, paired by seed."""
    colours = arm_colours(analysis.arms, analysis.baseline)
    arms = [arm for arm, other in analysis.pairs if other == analysis.baseline]
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    figure = new_figure(3.3 * columns + 0.6, 2.3 * rows + 0.8)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    baseline = analysis.curves(analysis.baseline, LOSS)
    x = [step * analysis.tokens_per_step / 1e6 for step in baseline[0].steps]
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes, arm in zip(grid.flat, arms, strict=False):
        points = band(analysis.curves(arm, LOSS), minus=baseline)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.plot(x, [point.mean for point in points], color=colours[arm], linewidth=1.8)
        if points[0].is_bounded:
            ends = [point.low for point in points], [point.high for point in points]
            axes.fill_between(x, *ends, color=colours[arm], alpha=0.2, linewidth=0)
        axes.set_title(arm, loc="left", fontsize=10, color=colours[arm], fontweight="bold")
        clean(axes, "y")
    figure.supxlabel("million tokens", color=MUTED, fontsize=10)
    figure.supylabel("nats", color=MUTED, fontsize=10)
    title = f"The same loss minus {analysis.baseline}'s, paired by seed: below 0 is better"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def final_differences(analysis: Analysis) -> Figure:
    """Draw what all of it comes to: differences at equal tokens, FLOP and time."""
    colours = arm_colours(analysis.arms, analysis.baseline)
    names = _names(analysis)
    figure = new_figure(12, 1.6 + 0.42 * len(names))
    panels = figure.subplots(1, len(AXES), sharey=True, sharex=True)
    for axes, axis in zip(panels, AXES, strict=True):
        axes.axvline(0, color=INK, linewidth=0.8)
        intervals = {names[a, o]: analysis.difference(a, o, LOSS, axis) for a, o in names}
        draw_intervals(axes, intervals, {names[a, o]: colours[a] for a, o in names})
        axes.set_title(f"at equal {axis}", loc="left", fontsize=10)
        axes.set_xlabel("nats; left of 0 is better")
    title = f"Next-token loss on clean held-out text minus {analysis.baseline}'s"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def head_differences(analysis: Analysis) -> Figure:
    """Draw differences of each head's loss at equal tokens, for the arms that have that head."""
    colours = arm_colours(analysis.arms, analysis.baseline)
    figures, names = analysis.head_losses(), _names(analysis)
    figure = new_figure(3.2 * len(figures) + 1.2, 1.6 + 0.42 * len(names))
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for head, (axes, loss) in enumerate(zip(panels, figures, strict=True)):
        axes.axvline(0, color=INK, linewidth=0.8)
        having = set(analysis.arms_with(loss))
        intervals = {names[a, o]: analysis.difference(a, o, loss) if {a, o} <= having else None for a, o in names}
        draw_intervals(axes, intervals, {names[a, o]: colours[a] for a, o in names})
        axes.set_title(f"head {head}", loc="left", fontsize=10)
        axes.set_xlabel("nats")
    title = "Loss of each head minus the baseline's, or the other arm's, at equal tokens: left is better"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def tokens_to_baseline(analysis: Analysis) -> Figure:
    """Draw bars: the share of the baseline's tokens that its final loss took.

    Hatched where a seed never reached it.
    """
    colours = arm_colours(analysis.arms, analysis.baseline)
    figure = new_figure(9, 1.2 + 0.4 * len(analysis.arms))
    axes = figure.subplots()
    for row, arm in enumerate(analysis.arms):
        shares = analysis.steps_to_baseline(arm, LOSS)
        reached = [share for share in shares if share is not None]
        if len(reached) < len(shares):
            axes.barh(row, 1, color="white", edgecolor=colours[arm], hatch="////", height=0.62)
            missed = f"  not reached in {len(shares) - len(reached)} of {len(shares)} seeds"
            axes.text(1, row, missed, va="center", color=MUTED, fontsize=9)
            continue
        interval = t_interval(reached)
        axes.barh(row, interval.mean, color=colours[arm], height=0.62)
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
    figure.suptitle("Tokens until the baseline's final loss is reached", x=0.01, ha="left", fontweight="bold")
    return figure


def _names(analysis: Analysis) -> dict[tuple[str, str], str]:
    """Return how each comparison is called beside its row."""
    return {(a, o): a if o == analysis.baseline else f"{a}\nagainst {o}" for a, o in analysis.pairs}


def _with_clock(unit: str, axis: Axis, analysis: Analysis) -> str:
    return f"{analysis.results.facts['clock']} {unit}" if axis == "time" else unit
