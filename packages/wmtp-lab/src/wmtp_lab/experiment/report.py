"""The report of an experiment, from its results file alone: a page, a summary in Markdown, and figures."""

import base64
from pathlib import Path

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.conclusions import conclusions, limits
from wmtp_lab.experiment.loss_figures import (
    difference_curves,
    final_differences,
    head_differences,
    learning_curves,
    tokens_to_baseline,
)
from wmtp_lab.experiment.result_tables import tables
from wmtp_lab.experiment.results import Results
from wmtp_lab.experiment.selection_figures import accepted_drafts, kept_by_kind, selection_maps
from wmtp_lab.plots import png, style
from wmtp_lab.report.page import page_environment
from wmtp_lab.tables import Table

_FIGURES = (
    learning_curves,
    difference_curves,
    final_differences,
    tokens_to_baseline,
    head_differences,
    accepted_drafts,
    kept_by_kind,
    selection_maps,
)


def write_report(results: Results, folder: Path) -> None:
    """Write `index.html`, which opens offline, `summary.md`, and each figure as PNG."""
    analysis = Analysis(results)
    images = draw_figures(analysis)
    made = tables(analysis)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    (folder / "summary.md").write_text(_markdown(analysis, made, list(images)), "utf-8")
    (folder / "index.html").write_text(_page(analysis, made, images), "utf-8")


def draw_figures(analysis: Analysis) -> dict[str, bytes]:
    """Return every figure that the results have something for, as PNG by name."""
    images = {}
    for draw in _FIGURES:
        with style():
            if figure := draw(analysis):
                images[draw.__name__] = png(figure)
    return images


def _title(analysis: Analysis) -> str:
    tokens = analysis.steps * analysis.tokens_per_step
    size = analysis.results.facts["parameters"]
    return (
        f"{len(analysis.arms)} arms, {len(analysis.seeds)} seeds: {size / 1e6:.2f} million parameters, "
        f"{tokens / 1e6:.2f} million tokens each"
    )


def _circumstances(analysis: Analysis) -> str:
    facts = analysis.results.facts
    described = {**facts["machine"], **facts["versions"]}
    parts = [facts["command"], ", ".join(f"{name} {value}" for name, value in described.items())]
    parts += [f"{part}: commit {', '.join(commits)}" for part, commits in facts["commits"].items() if commits]
    return "; ".join(parts)


def _markdown(analysis: Analysis, made: list[Table], figures: list[str]) -> str:
    parts = [
        f"## {_title(analysis)}",
        "### Limits first",
        "\n".join(f"* {limit}" for limit in limits(analysis)),
        "### What was seen",
        "\n".join(f"* {sentence}" for sentence in conclusions(analysis)),
        *(f"![{name.replace('_', ' ')}]({name}.png)" for name in figures),
        *(table.markdown() for table in made),
        "### How it was measured",
        _circumstances(analysis),
    ]
    return "\n\n".join(parts) + "\n"


def _page(analysis: Analysis, made: list[Table], images: dict[str, bytes]) -> str:
    return (
        page_environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            title=_title(analysis),
            limits=limits(analysis),
            conclusions=conclusions(analysis),
            figures={name: base64.b64encode(image).decode() for name, image in images.items()},
            tables=made,
            circumstances=_circumstances(analysis),
        )
    )
