"""Student's t intervals over seeds, what may be said of them, and how they are written."""

from collections.abc import Sequence
from functools import cache
from math import inf, sqrt
from statistics import mean, stdev
from typing import NamedTuple

import mpmath

from wmtp_lab.tables import number

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over `n` seeds and its 95 % confidence interval, without ends where there is one seed alone."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_bounded(self) -> bool:
        """Whether there were seeds enough for an interval."""
        return self.n > 1


def t_interval(values: Sequence[float]) -> Interval:
    """Return mean ± t · s / √n, the two-sided 95 % interval of a normal mean of unknown variance.

    Args:
        values: one per seed; differences of two arms seed by seed make a paired comparison.
    """
    n, middle = len(values), mean(values)
    half = inf if n < 2 else t_quantile(n - 1) * stdev(values) / sqrt(n)
    return Interval(middle, middle - half, middle + half, n)


@cache
def t_quantile(degrees: int) -> float:
    """Return the t that a Student variable exceeds in absolute value with probability 1 − `CONFIDENCE`.

    With x = n / (n + t²), that probability is the regularised incomplete beta function I_x(n/2, 1/2)
    (Abramowitz & Stegun 26.7.1).
    """

    def excess(t: mpmath.mpf) -> mpmath.mpf:
        x = degrees / (degrees + t * t)
        return mpmath.betainc(degrees / 2, 0.5, 0, x, regularized=True) - (1 - CONFIDENCE)

    return float(mpmath.findroot(excess, (1.9, 12.8), solver="anderson"))  # from endless degrees of freedom down to one


def p_value(difference: Interval) -> float:
    """Return how probable a difference is that lies as far from 0 or farther, if there is none (Student's t).

    Args:
        difference: of two seeds or more.
    """
    degrees = difference.n - 1
    error = (difference.high - difference.mean) / t_quantile(degrees)  # s / √n
    if error == 0:
        return 0.0 if difference.mean else 1.0
    x = degrees / (degrees + (difference.mean / error) ** 2)
    return float(mpmath.betainc(degrees / 2, 0.5, 0, x, regularized=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's method (1979): below 0.05, one of all is wrong at most so
    often, however they depend on one another.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def stand(differences: Sequence[Interval]) -> list[bool]:
    """Return which differences leave out 0 also after Holm's correction for all of them; of one seed none does."""
    bounded = [difference for difference in differences if difference.is_bounded]
    corrected = iter(holm([p_value(difference) for difference in bounded]))
    return [difference.is_bounded and next(corrected) < 1 - CONFIDENCE for difference in differences]


def verdict(difference: Interval, smaller_is_better: bool = True) -> str:
    """Return what a paired difference shows: "better", "worse" or "no difference seen"."""
    if difference.low <= 0 <= difference.high:
        return "no difference seen"
    return "better" if (difference.high < 0) == smaller_is_better else "worse"


def plus_minus(interval: Interval, digits: int = 3) -> str:
    """Return a mean with half the width of its interval."""
    half = f" ± {interval.high - interval.mean:.{digits}f}" if interval.is_bounded else ""
    return number(interval.mean, digits) + half


def change(difference: Interval, digits: int = 3) -> str:
    """Return a difference with the ends of its interval."""
    ends = f" [{number(difference.low, digits, True)}, {number(difference.high, digits, True)}]"
    return number(difference.mean, digits, True) + (ends if difference.is_bounded else "")


def judged(difference: Interval, smaller_is_better: bool = True) -> str:
    """Return a difference and what it shows."""
    words = verdict(difference, smaller_is_better) if difference.is_bounded else "one seed shows nothing"
    return f"{change(difference)} {words}"
