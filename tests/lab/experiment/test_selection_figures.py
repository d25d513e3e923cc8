from typing import Any

import pytest

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.selection_figures import accepted_drafts, kept_by_kind, selection_maps


@pytest.fixture
def analysis(make_results: Any) -> Analysis:
    return Analysis(make_results())


def test_cells_hold_the_shares_by_kind_and_third(analysis: Analysis) -> None:
    figure = kept_by_kind(analysis)
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", "hexdump", "log"]
    assert [text.get_text() for text in axes.texts] == ["33", "67", "100", "17", "33", "50", "11", "22", "33"]


def test_accepted_drafts_of_the_arms_that_draft(analysis: Analysis) -> None:
    figure = accepted_drafts(analysis)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["greedy", "sampled", "on the text"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["mtp-baseline", "rho1-k0.6"]


def test_the_map_shows_the_text_of_arms_that_weigh(analysis: Analysis) -> None:
    figure = selection_maps(analysis)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "rho1-k0.6"
    shown = "".join(text.get_text() for text in axes.texts)
    for word in ("def", "AAA=", "base64"):
        assert word in shown


def test_what_was_not_measured_is_not_drawn(make_results: Any) -> None:
    curves = {"next-token": [[7, 5, 4, 3.0]], "b": [[7, 5, 4, 3.5]]}
    analysis = Analysis(make_results(curves))
    assert accepted_drafts(analysis) is None  # the baseline has none to compare with
    assert kept_by_kind(analysis) is None
    assert selection_maps(analysis) is None
