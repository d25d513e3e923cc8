from typing import Any

import pytest

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.result_tables import tables
from wmtp_lab.tables import Table


@pytest.fixture
def made(make_results: Any) -> dict[str, Table]:
    return {table.title: table for table in tables(Analysis(make_results(also_compare=[("rho1-k0.6", "next-token")])))}


def test_losses_and_their_differences(made: dict[str, Table]) -> None:
    table = made["Next-token loss on clean held-out text (head 0)"]
    assert table.head[2:] == [f"difference at equal {axis}" for axis in ("tokens", "FLOP", "time")]
    assert table.rows[0] == ["mtp-baseline", "4.100 ± 0.248", "–", "–", "–"]
    assert table.rows[1][:3] == ["rho1-k0.6", "3.900 ± 0.224", "−0.200 [−0.225, −0.175] better"]
    assert table.rows[2][2] == "+0.000 [−0.248, +0.248] no difference seen"
    assert table.rows[3][0] == "rho1-k0.6 against next-token"


def test_an_arm_without_a_head_has_a_dash_there(made: dict[str, Table]) -> None:
    table = made["Loss of each head on clean held-out text, at equal tokens"]
    assert table.head == ["arm", "head 0", "head 1"]
    assert table.rows[0] == ["mtp-baseline", "4.100 ± 0.248", "5.100 ± 0.248"]
    assert table.rows[2][2] == "–"
    assert table.rows[3] == ["rho1-k0.6 against next-token", "−0.200 [−0.437, +0.037] no difference seen", "–"]
    # One nat above head 0's losses throughout, so the same differences: see test_conclusions.py.
    assert made["Loss of each head on clean held-out text, at equal FLOP"].rows[1][2].startswith("−0.500 [")


def test_count_models_stand_beside_the_arms(made: dict[str, Table]) -> None:
    rows = made["What counting reaches"].rows
    assert rows[:3] == [
        ["unigram entropy", "5.000 ± 0.000", "5.000 ± 0.000"],
        ["bigram table", "4.100 ± 0.248", "6.100 ± 0.248"],
        ["mtp-baseline against it", "+0.000 [+0.000, +0.000] no difference seen", "−1.000 [−1.000, −1.000] better"],
    ]
    assert rows[3][:2] == ["rho1-k0.6 against it", "−0.200 [−0.225, −0.175] better"]
    assert rows[4][2] == "–"


def test_a_star_marks_what_the_correction_takes_back(make_results: Any) -> None:
    """One difference is far from 0 beside its spread; two have p = 0.035, which twice is no longer below 0.05."""
    ends = {"base": (3.0, 3.1, 3.2), "clear": (2.001, 2.1, 2.2), "a": (2.9, 2.95, 3.0), "b": (2.9, 2.95, 3.0)}
    curves = {arm: [[7, 5, 4, loss] for loss in losses] for arm, losses in ends.items()}
    rows = {table.title: table for table in tables(Analysis(make_results(curves)))}[
        "Loss of each head on clean held-out text, at equal tokens"
    ].rows
    assert [row[1].rpartition(" ")[2] for row in rows[1:]] == ["better", "better*", "better*"]


def test_accuracy_is_better_where_it_is_larger(made: dict[str, Table]) -> None:
    rows = made["Accuracy of each head"].rows
    assert rows[0] == ["mtp-baseline", "0.590 ± 0.025", "0.250 ± 0.000"]
    assert rows[1] == ["bigram table", "0.500 ± 0.000", "0.500 ± 0.000"]
    assert rows[2] == ["rho1-k0.6", "+0.020 [+0.018, +0.022] better", "+0.000 [+0.000, +0.000] no difference seen"]


def test_accepted_drafts_are_not_judged(made: dict[str, Table]) -> None:
    cell = made["Accepted drafts per forward"].rows[1][2]
    assert cell.startswith("−0.107 [")
    assert cell.endswith("]")


def test_tokens_to_the_baseline(made: dict[str, Table]) -> None:
    rows = made["Tokens to the baseline's final loss"].rows
    assert rows[0] == ["mtp-baseline", "3 of 3", "1.000 ± 0.000"]
    assert rows[2] == ["next-token", "2 of 3", "more than 1 in 1 of 3"]


def test_selection_by_phase_and_kind(made: dict[str, Table]) -> None:
    (row,) = made["Selection against the noise labels, by phase of training"].rows
    assert row == ["rho1-k0.6", *["0.60 ± 0.00"] * 3, *["0.80 ± 0.00"] * 3, "0.60 ± 0.00", "0.70 ± 0.00", "0.80 ± 0.00"]
    table = made["Selection by kind of text"]
    assert table.head == ["arm", "clean", "hexdump", "log"]
    assert table.rows == [["rho1-k0.6", "1.00 ± 0.00", "0.50 ± 0.00", "0.33 ± 0.00"]]


def test_what_an_arm_does_not_have_is_missing_in_its_place(make_results: Any) -> None:
    """A softmax keeps everything: it has an AUC, and neither precision nor recall."""
    results = make_results()
    for seed in range(3):
        for name in ("precision", "recall"):
            del results.series["rho1-k0.6", seed, f"evaluation/noisy/noise/{name}"]
    (row,) = {table.title: table for table in tables(Analysis(results))}[
        "Selection against the noise labels, by phase of training"
    ].rows
    assert row == ["rho1-k0.6", *["–"] * 6, "0.60 ± 0.00", "0.70 ± 0.00", "0.80 ± 0.00"]


def test_costs_are_over_the_baselines(made: dict[str, Table]) -> None:
    rows = made["What a step costs"].rows
    assert [row[0] for row in rows] == ["mtp-baseline", "rho1-k0.6", "next-token", "reference"]
    assert rows[1] == ["rho1-k0.6", "0.000", "0.800", "0.9", "0.818 (0.800–0.833)", "16"]


def test_nothing_measured_gives_no_table(make_results: Any) -> None:
    curves = {"a": [[7, 5, 4, 3.0], [7, 5, 4, 3.1]], "next-token": [[7, 5, 4, 3.5], [7, 5, 4, 3.61]]}
    titles = [table.title for table in tables(Analysis(make_results(curves)))]
    assert "Accepted drafts per forward" in titles
    assert not any(title.startswith("Selection") for title in titles)


def test_one_seed_has_no_interval(make_results: Any) -> None:
    made = tables(Analysis(make_results({"a": [[7, 5, 4, 3.0]], "b": [[7, 5, 4, 3.5]]})))
    assert made[0].rows[1][1:3] == ["3.500", "+0.500 one seed shows nothing"]
