import re
from pathlib import Path
from typing import Any

import pytest

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.conclusions import conclusions, limits
from wmtp_lab.experiment.report import write_report
from wmtp_lab.experiment.results import open_results

FIGURES = {
    "learning_curves", "difference_curves", "final_differences", "tokens_to_baseline",
    "head_differences", "accepted_drafts", "kept_by_kind", "selection_maps",
}  # fmt: skip


@pytest.fixture
def folder(make_results: Any, tmp_path: Path) -> Path:
    results = make_results()
    write_report(results, tmp_path / "report")
    return tmp_path / "report"


def test_page_summary_and_figures_are_written(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {"index.html", "summary.md", *(f"{n}.png" for n in FIGURES)}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.glob("*.png"))


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = (folder / "index.html").read_text("utf-8")
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|https?:", page)
    sources = re.findall(r'src="([^"]{22})', page)
    assert sources == ["data:image/png;base64,"] * len(FIGURES)


def test_limits_come_first_and_conclusions_are_those_of_the_intervals(make_results: Any, folder: Path) -> None:
    summary = (folder / "summary.md").read_text("utf-8")
    analysis = Analysis(make_results())
    for text in (*limits(analysis), *conclusions(analysis)):
        assert f"* {text}\n" in summary
    assert summary.index(limits(analysis)[0]) < summary.index("A table of bigrams")
    assert summary.startswith("## 3 arms, 3 seeds: 2.00 million parameters, 0.03 million tokens each\n")
    assert (
        "python -m wmtp_lab.experiment plan.yaml --output here; processor abacus, torch 9; runs: commit 0123abc, "
        "4567def; costs: commit 4567def"
    ) in summary


def test_the_same_results_make_the_same_report(make_results: Any, folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_report(open_results(tmp_path / "results.parquet"), again)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
