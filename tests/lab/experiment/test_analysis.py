from typing import Any

import pytest

from wmtp_lab.experiment.analysis import KEPT, Analysis, band, first_step_at
from wmtp_lab.experiment.intervals import t_interval
from wmtp_lab.experiment.results import Row
from wmtp_lab.experiment.runs import LOSS
from wmtp_lab.report.runs import Series


@pytest.fixture
def analysis(make_results: Any) -> Analysis:
    return Analysis(make_results(also_compare=[("rho1-k0.6", "next-token")]))


def test_differences_are_paired_by_seed(analysis: Analysis) -> None:
    found = analysis.difference("rho1-k0.6", "mtp-baseline", LOSS)
    assert found == pytest.approx(t_interval([3.81 - 4.0, 3.90 - 4.10, 3.99 - 4.20]))
    assert found.high < 0  # though the arms' own intervals overlap
    assert analysis.final("rho1-k0.6", LOSS).high > analysis.final("mtp-baseline", LOSS).low


def test_at_equal_flop_the_more_expensive_curve_is_read_where_the_cheaper_ends(analysis: Analysis) -> None:
    # 30 steps of 80 FLOP are 24 of 100: there the baseline is 0.4 of the way from step 20 to 30.
    baseline = [4.5 - 0.4 * 0.5, 4.6 - 0.4 * 0.5, 4.7 - 0.4 * 0.5]
    expected = t_interval([a - b for a, b in zip([3.81, 3.90, 3.99], baseline, strict=True)])
    assert analysis.difference("rho1-k0.6", "mtp-baseline", LOSS, "FLOP") == pytest.approx(expected)
    back = analysis.difference("mtp-baseline", "rho1-k0.6", LOSS, "FLOP")
    assert back.mean == pytest.approx(-expected.mean)


def test_time_is_the_median_of_the_timed_steps(analysis: Analysis) -> None:
    assert analysis.per_step("mtp-baseline", "time") == pytest.approx(1.1)
    assert analysis.per_step("mtp-baseline", "FLOP") == 100
    assert analysis.per_step("rho1-k0.6", "tokens") == 1000


def test_steps_to_the_baseline_of_the_same_seed(analysis: Analysis) -> None:
    assert analysis.steps_to_baseline("mtp-baseline", LOSS) == [1, 1, 1]
    first = (20 + 10 * (4.4 - 4.0) / (4.4 - 3.81)) / 30
    assert analysis.steps_to_baseline("rho1-k0.6", LOSS)[0] == pytest.approx(first)
    assert analysis.steps_to_baseline("next-token", LOSS)[0] is None
    assert analysis.steps_to_baseline("next-token", LOSS)[1] == pytest.approx((20 + 10 * 0.3 / 0.4) / 30)


def test_a_series_reaches_a_value_where_it_first_comes_down_to_it() -> None:
    series = Series([0, 10, 20, 30], [5.0, 3.0, 4.0, 2.0])
    assert first_step_at(series, 5.5) == 0
    assert first_step_at(series, 4.0) == 5
    assert first_step_at(series, 3.0) == 10
    assert first_step_at(series, 2.5) == 27.5
    assert first_step_at(series, 1.9) is None


def test_phases_are_thirds_without_the_start(analysis: Analysis) -> None:
    shares = [interval.mean for interval in analysis.by_phase("rho1-k0.6", KEPT + "clean")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert analysis.kinds() == ["clean", "hexdump", "log"]


def test_the_steps_of_a_warm_up_take_what_they_take(make_results: Any) -> None:
    """Ten steps of 100 FLOP and twenty of 80 are 2600: the baseline has taken 26 of its 30 steps by then."""
    results = make_results()
    results.add(
        [Row("rho1-k0.6", None, "cost/warm_up_steps", 0, 10), Row("rho1-k0.6", None, "cost/warm_up/flop", 0, 100)]
    )
    analysis = Analysis(results)
    assert [analysis.spent("rho1-k0.6", "FLOP", steps) for steps in (0, 5, 10, 30)] == [0, 500, 1000, 2600]
    assert [analysis.steps_within("rho1-k0.6", "FLOP", budget) for budget in (500, 1000, 2600)] == [5, 10, 30]
    assert analysis.spent("rho1-k0.6", "tokens", 30) == 30_000
    baseline = [4.5 - 0.6 * 0.5, 4.6 - 0.6 * 0.5, 4.7 - 0.6 * 0.5]
    expected = t_interval([a - b for a, b in zip([3.81, 3.90, 3.99], baseline, strict=True)])
    assert analysis.difference("rho1-k0.6", "mtp-baseline", LOSS, "FLOP") == pytest.approx(expected)


def test_a_third_without_evaluations_is_none(make_results: Any) -> None:
    results = make_results()
    for seed in range(3):
        steps, values = results.series["rho1-k0.6", seed, "evaluation/noisy/excess_auc"]
        del steps[1], values[1]
    first, second, _ = Analysis(results).by_phase("rho1-k0.6", "evaluation/noisy/excess_auc")
    assert first is None
    assert second is not None


def test_pairs_and_arms(analysis: Analysis) -> None:
    assert analysis.pairs == [
        ("rho1-k0.6", "mtp-baseline"), ("next-token", "mtp-baseline"), ("rho1-k0.6", "next-token")
    ]  # fmt: skip
    assert analysis.arms_with("evaluation/clean/ce/head_1") == ["mtp-baseline", "rho1-k0.6"]


def test_the_control_sees_arms_that_start_apart(make_results: Any) -> None:
    assert Analysis(make_results()).largest_difference_at_start(LOSS) == 0
    apart = {"a": [[7.0, 5, 4, 3], [8.0, 5, 4, 3]], "b": [[7.0, 5, 4, 3], [8.25, 5, 4, 3]]}
    assert Analysis(make_results(apart)).largest_difference_at_start(LOSS) == 0.25


def test_bands_of_values_and_of_differences() -> None:
    mine, its = [Series([0, 1], [3.0, 1.0]), Series([0, 1], [5.0, 2.0])], [Series([0, 1], [1.0, 1.0])] * 2
    assert band(mine) == [t_interval([3.0, 5.0]), t_interval([1.0, 2.0])]
    assert band(mine, minus=its) == [t_interval([2.0, 4.0]), t_interval([0.0, 1.0])]
