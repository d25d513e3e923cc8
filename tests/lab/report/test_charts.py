from typing import Any

import pytest
from matplotlib.figure import Figure

from wmtp_lab.plots import kind_styles
from wmtp_lab.report.charts import CHARTS, Line, draw, limits_of, smooth, spread
from wmtp_lab.report.runs import Series, read_runs


def lines_by_title(folder: Any) -> dict[str, Any]:
    (run,) = read_runs([folder])
    kinds = kind_styles(run.noise_kinds)
    return {chart.title: lines for chart in CHARTS if (lines := chart.lines(run, kinds))}


def test_a_run_has_the_charts_that_its_records_give(make_run: Any) -> None:
    charts = lines_by_title(make_run())
    assert list(charts) == [
        "Training loss",
        "Final held-out loss",
        "Kept, by kind of text",
        "Kept, by head",
        "Threshold",
    ]
    assert [line.label for line in charts["Training loss"]] == ["head 0", "head 1", "head 2"]
    assert charts["Training loss"][2].series.values == [9.0, 8.0, 7.0]
    assert [line.label for line in charts["Final held-out loss"]] == ["clean", "noisy", "noisy, clean"]
    assert charts["Final held-out loss"][2].series == ([0, 1, 2], [4.5, 6.0, 7.5])
    assert [line.label for line in charts["Kept, by kind of text"]] == ["clean", "base64", "log"]
    assert [line.label for line in charts["Threshold"]] == ["head 1"]  # head 0 has no choice


def test_a_critic_has_its_own_and_keeps_everything(make_run: Any) -> None:
    scalars = {
        "ce/head_0": [(10, 8.0), (20, 7.0)],
        "selected_ratio/head_0": [(10, 1.0), (20, 1.0)],
        "noise/kept/clean": [(10, 1.0), (20, 1.0)],
        "critic/value_loss": [(10, 0.3), (20, 0.2)],
        "critic/weight_entropy": [(10, 1.3), (20, 1.2)],
        "evaluation/noisy/value_auc": [(10, 0.5), (20, 0.7)],
    }
    metrics = {"noisy/ce/head_0": 7.0, "noisy/value_auc": 0.7}
    charts = lines_by_title(make_run(scalars=scalars, metrics=metrics))
    assert list(charts) == ["Training loss", "Value loss", "Entropy of the weights", "Value AUC"]
    assert charts["Value AUC"][0].label == "noisy"


def test_every_line_is_drawn_with_its_label(make_run: Any) -> None:
    lines = lines_by_title(make_run())["Training loss"]
    axes = Figure().add_subplot()
    draw(axes, lines, limits_of(lines, share=False), share=False)
    assert [list(line.get_ydata()) for line in axes.lines] == [line.series.values for line in lines]
    assert [text.get_text() for text in axes.texts] == ["head 0", "head 1", "head 2"]
    assert axes.get_ylim()[0] < 4.0 < 9.0 < axes.get_ylim()[1]


def test_labels_keep_their_distance_their_order_and_below_the_top() -> None:
    assert spread([0.2, 0.8, 0.5], 0.1) == [0.2, 0.8, 0.5]
    assert spread([0.5, 0.5, 0.0], 0.1) == pytest.approx([0.5, 0.6, 0.0])
    assert spread([1.0, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_smoothing_is_a_mean_over_neighbours() -> None:
    series = Series([1, 2, 3, 4], [0.0, 3.0, 6.0, 0.0])
    assert smooth(series, 3) == ([1, 2, 3, 4], [1.5, 3.0, 3.0, 3.0])
    assert smooth(series, 1) == series


def test_a_flat_line_still_has_a_range() -> None:
    low, high = limits_of([Line("x", Series([1, 2], [3.0, 3.0]), "black")], share=False)
    assert low < 3.0 < high
