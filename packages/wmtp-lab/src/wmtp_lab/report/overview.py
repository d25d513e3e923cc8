"""The picture for a README: losses, what is kept, and a marked passage, at a glance."""

from textwrap import shorten

from matplotlib.figure import Figure

from wmtp_core.errors import UserError
from wmtp_lab.plots import MUTED, kind_styles, png, style
from wmtp_lab.report.charts import CHARTS, draw, limits_of
from wmtp_lab.report.page import shown_passage
from wmtp_lab.report.passage_plot import draw_passage
from wmtp_lab.report.runs import Run


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
    with style(12.5):
        figure = Figure(figsize=(16, 7), dpi=120, facecolor="white")
        charts = [(chart, lines) for chart in CHARTS if (lines := chart.lines(run, kinds))]
        loss = next(pair for pair in charts if pair[0].section == "Loss")
        second = next((pair for pair in charts if pair[0].section != "Loss"), charts[-1])
        for bottom, (chart, lines) in zip((0.58, 0.085), (loss, second), strict=True):
            axes = figure.add_axes((0.05, bottom, 0.285, 0.3))
            draw(axes, lines, limits_of(lines, chart.share), chart.share, label_gap=0.085)
            axes.set_title(chart.title, loc="left", fontweight="bold", pad=26)
            note = shorten(chart.note, 62, placeholder=" …")
            axes.text(0, 1.045, note, transform=axes.transAxes, color=MUTED, size=11)
        draw_passage(figure.add_axes((0.445, 0.03, 0.545, 0.85)), passage, kinds)
        return png(figure)
