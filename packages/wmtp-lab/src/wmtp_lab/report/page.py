"""The report as one HTML page that needs nothing but itself."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wmtp_lab.plots import INK, MUTED, kind_styles, shade_opacity, style
from wmtp_lab.report.charts import CHARTS, Chart, Kinds, Line, draw, limits_of
from wmtp_lab.report.passage import SHADES, Passage
from wmtp_lab.report.runs import Run
from wmtp_lab.report.summary import result_sentence, table_head, table_row
from wmtp_lab.tables import number, percent

_FOREGROUND = "#010203"  # stands for the page's own text color, which differs by day and by night


class Plot(NamedTuple):
    """A chart of one run, drawn."""

    run: str
    title: str
    note: str
    svg: Markup


def page_environment(folder: Path) -> Environment:
    """Return templates of a folder, where what is missing is an error and text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"ink": INK, "muted": MUTED}
    return environment


def render(runs: list[Run]) -> str:
    """Return the page, the same to the byte for the same runs."""
    kinds = kind_styles(set[str]().union(*(run.noise_kinds for run in runs)))
    horizon = max(len(run.heads("ce")) for run in runs)
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"number": number, "percent": percent}
    return environment.get_template("report.html.j2").render(
        runs=runs,
        sentences=[result_sentence(run) for run in runs],
        table_head=table_head(horizon),
        table_rows=[table_row(run, horizon) for run in runs],
        sections=_sections(runs, kinds),
        passages={run.name: passage for run in runs if (passage := shown_passage(run))},
        kinds=kinds,
        opacities=[shade_opacity(shade, SHADES) for shade in range(SHADES)],
    )


def shown_passage(run: Run) -> Passage | None:
    """Return the first passage with noise, else the first; None where no passage has a later head to mark it."""
    passages = [passage for passage in run.passages.values() if passage.later_heads]
    return next((passage for passage in passages if passage.kinds), passages[0] if passages else None)


def _sections(runs: list[Run], kinds: Kinds) -> dict[str, list[Plot]]:
    """Return plots by section: each chart for every run that has it, on one scale."""
    sections: dict[str, list[Plot]] = {}
    for chart in CHARTS:
        lines = {run.name: chart.lines(run, kinds) for run in runs}
        everything = [line for found in lines.values() for line in found]
        if everything:
            limits = limits_of(everything, chart.share)
            sections.setdefault(chart.section, []).extend(
                Plot(name, chart.title, chart.note, _svg(chart, found, limits))
                for name, found in lines.items()
                if found
            )
    return sections


def _svg(chart: Chart, lines: list[Line], limits: tuple[float, float]) -> Markup:
    """Return a chart to stand in HTML: real text, the page's colors, and no name that points outside."""
    svg: Any = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "grid.color": _FOREGROUND}
    with style(ink=_FOREGROUND, muted=_FOREGROUND, **svg):
        figure = Figure(figsize=(5.6, 3.1))
        axes = figure.add_axes((0.09, 0.14, 0.75, 0.82))
        draw(axes, lines, limits, chart.share)
        axes.set_xlabel(chart.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_FOREGROUND, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"(?=[^<]*viewBox)', "", text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' id="[a-z0-9]+_\d+"', "", text)  # nothing refers to these, and every chart has them
    return Markup(text.replace("<svg", '<svg role="img"', 1))
