from math import inf, sqrt

import pytest

from wmtp_lab.experiment.intervals import Interval, holm, p_value, t_interval, t_quantile, verdict


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


# Points of the same tables: |t| is beyond them with this probability.
@pytest.mark.parametrize(("n", "t", "p"), [(2, 12.706, 0.05), (2, 63.657, 0.01), (4, 5.841, 0.01), (11, 1.812, 0.10)])
def test_p_values_are_those_of_the_tables(n: int, t: float, p: float) -> None:
    half = t_quantile(n - 1)  # for a standard error of 1
    assert p_value(Interval(t, t - half, t + half, n)) == pytest.approx(p, rel=1e-3)
    assert p_value(Interval(-t, -t - half, -t + half, n)) == pytest.approx(p, rel=1e-3)


def test_differences_without_spread_are_certain() -> None:
    assert p_value(Interval(0.0, 0.0, 0.0, 3)) == 1
    assert p_value(Interval(0.1, 0.1, 0.1, 3)) == 0


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    """Sorted, the i-th of n is compared with level / (n − i), until the first that is not below."""
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.005]
    for level in (0.02, 0.025, 0.0401, 0.05, 0.1001, 0.13, 0.6):
        rejected = set()
        for rank, place in enumerate(sorted(range(6), key=lambda place: p_values[place])):
            if p_values[place] > level / (6 - rank):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= level} == rejected
    assert holm([]) == []
