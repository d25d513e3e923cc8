from math import inf, sqrt

import pytest

from wmtp_lab.experiment.intervals import Interval, t_interval, t_quantile, verdict


# Two-sided 95 % points of Student's distribution as every printed table has them.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (9, 2.262),
        (10, 2.228),
        (30, 2.042),
        (120, 1.980),
        (10000, 1.960),
    ],
)
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert round(t_quantile(degrees), 3) == quantile


def test_an_interval_is_mean_and_t_standard_errors() -> None:
    found = t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.302653 / sqrt(3), rel=1e-6)
    assert 2 - found.low == pytest.approx(found.high - 2)
    assert found.n == 3


def test_one_seed_gives_no_interval() -> None:
    found = t_interval([0.5])
    assert found == Interval(0.5, -inf, inf, 1)
    assert not found.is_bounded
    assert verdict(found) == "no difference seen"


@pytest.mark.parametrize(
    ("low", "high", "small", "large"),
    [
        (-2, -1, "better", "worse"),
        (1, 2, "worse", "better"),
        (-1, 1, "no difference seen", "no difference seen"),
        (-1, 0, "no difference seen", "no difference seen"),
        (0, 1, "no difference seen", "no difference seen"),
    ],
)
def test_a_difference_counts_where_its_interval_leaves_out_zero(low: int, high: int, small: str, large: str) -> None:
    difference = Interval((low + high) / 2, low, high, 3)
    assert verdict(difference) == small
    assert verdict(difference, smaller_is_better=False) == large
