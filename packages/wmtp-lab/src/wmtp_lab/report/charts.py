"""What there is to plot of a run, and how the lines are drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from matplotlib.axes import Axes

from wmtp_lab.plots import KEEP, MUTED, KindStyle, clean, head_color
from wmtp_lab.report.runs import Run, Series
from wmtp_lab.report.summary import held_out_loss, selects

Kinds = Mapping[str, KindStyle]


@dataclass(frozen=True)
class Line:
    """One labelled line of a chart."""

    label: str
    series: Series
    color: str
    style: str = "-"
    width: float = 1.8


@dataclass(frozen=True)
class Chart:
    """A kind of chart: `lines` finds what a run has of it, maybe nothing."""

    section: str
    title: str
    note: str
    lines: Callable[[Run, Kinds], list[Line]]
    share: bool = False
    x_label: str = "optimizer step"


def draw(axes: Axes, lines: list[Line], limits: tuple[float, float], share: bool, label_gap: float = 0.062) -> None:
    """Draw lines with their labels at their right ends, no two closer than `label_gap` of the height."""
    low, high = limits
    axes.set_ylim(low, high)
    for line in lines:
        marker = "o" if len(line.series.steps) <= 12 else None
        axes.plot(*line.series, color=line.color, linestyle=line.style, linewidth=line.width, marker=marker, ms=3.5)
    if share:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    clean(axes, "y")
    axes.margins(x=0.015)

    heights = spread([(line.series.values[-1] - low) / (high - low) for line in lines], label_gap)
    for height, line in zip(heights, lines, strict=True):
        axes.text(1.02, height, line.label, color=line.color, transform=axes.transAxes, va="center")


def spread(heights: list[float], gap: float) -> list[float]:
    """Return the heights in their order, moved up as little as keeps them `gap` apart, and down from the top, 1."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    places = list(heights)
    for lower, upper in pairwise(order):
        places[upper] = max(places[upper], places[lower] + gap)
    highest = 1.0
    for i in reversed(order):
        places[i] = min(places[i], highest)
        highest = places[i] - gap
    return places


def limits_of(lines: list[Line], share: bool) -> tuple[float, float]:
    """Return a common y range: 0 to 1 for shares, else all values and a little air."""
    if share:
        return 0.0, 1.02
    values = [value for line in lines for value in line.series.values]
    air = 0.05 * (max(values) - min(values)) or 0.5
    return min(values) - air, max(values) + air


def smooth(series: Series, window: int) -> Series:
    """Return the mean over `window` points (an odd number) around each, over fewer at the ends."""
    half, values = window // 2, series.values
    return Series(series.steps, [mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _by_head(run: Run, tag: str, first: int = 0) -> list[Line]:
    heads = run.heads(tag)
    horizon = len(run.heads("ce"))
    return [Line(f"head {h}", s, head_color(h, horizon)) for h, s in heads.items() if h >= first]


def _training_loss(run: Run, _: Kinds) -> list[Line]:
    reference = [Line("reference", s, MUTED, "--", 1.2) for h, s in run.heads("reference_ce").items() if h == 0]
    return reference + _by_head(run, "ce")


def _held_out_curves(run: Run, _: Kinds) -> list[Line]:
    found = held_out_loss(run)
    lines = _by_head(run, f"evaluation/{found[0]}") if found else []
    return lines if any(len(line.series.steps) > 1 for line in lines) else []


def _final_losses(run: Run, _: Kinds) -> list[Line]:
    """Return loss over head, a line for each held-out set, and one for the clean tokens of each noisy set."""
    styles = {"ce": ("", "-"), "clean_ce": (", clean", "--")}
    lines = []
    for i, name in enumerate(run.evaluation_sets):
        for metric, (suffix, style) in styles.items():
            if len(found := run.final_heads(f"{name}/{metric}")) > 1:
                color = head_color(i, len(run.evaluation_sets))
                lines.append(Line(name + suffix, Series(list(found), list(found.values())), color, style))
    return lines


def _kept_by_kind(run: Run, kinds: Kinds) -> list[Line]:
    if not selects(run):
        return []
    lines = []
    for kind in ("clean", *kinds):
        if series := run.scalars.get(f"noise/kept/{kind}"):
            style = (KEEP, "-", 3.2) if kind == "clean" else (kinds[kind].color, kinds[kind].line, 1.6)
            lines.append(Line(kind, smooth(series, len(series.steps) // 10 * 2 + 1), *style))
    return lines


def _where_it_selects(tag: str, first: int = 0) -> Callable[[Run, Kinds], list[Line]]:
    return lambda run, _: _by_head(run, tag, first) if selects(run) else []


def _scalar(tag: str, label: str) -> Callable[[Run, Kinds], list[Line]]:
    return lambda run, _: [Line(label, run.scalars[tag], KEEP)] if tag in run.scalars else []


def _value_auc(run: Run, _: Kinds) -> list[Line]:
    found = {name: run.scalars.get(f"evaluation/{name}/value_auc") for name in run.evaluation_sets}
    curves = {name: series for name, series in found.items() if series and len(series.steps) > 1}
    return [Line(name, series, head_color(i, len(curves))) for i, (name, series) in enumerate(curves.items())]


CHARTS = [
    Chart("Loss", "Training loss", "Mean cross-entropy of each head, in nats per token.", _training_loss),
    Chart("Loss", "Held-out loss", "The same on the held-out set of the table above.", _held_out_curves),
    Chart("Loss", "Final held-out loss", "In nats per token; head h predicts h + 1 tokens ahead.", _final_losses,
          x_label="head"),
    Chart("Selection", "Kept, by kind of text", "Share of the later heads' predictions; running mean.",
          _kept_by_kind, share=True),
    Chart("Selection", "Kept, by head", "Share of each head's predictions.",
          _where_it_selects("selected_ratio"), share=True),
    Chart("Selection", "Mean excess loss", "Loss minus the reference's loss on the same token, in nats.",
          lambda run, _: _by_head(run, "excess_mean")),
    Chart("Selection", "Threshold", "Smallest excess loss that is still selected, in nats.",
          _where_it_selects("threshold", first=1)),
    Chart("Critic", "Value loss", "What the value head minimises.", _scalar("critic/value_loss", "value loss")),
    Chart("Critic", "Entropy of the weights", "Over a position's heads; equal weights give the most.",
          _scalar("critic/weight_entropy", "entropy")),
    Chart("Critic", "Value AUC", "Good files told from bad ones on held-out text; chance is 0.5.", _value_auc,
          share=True),
]  # fmt: skip
"""Every chart of the report, in its order."""
