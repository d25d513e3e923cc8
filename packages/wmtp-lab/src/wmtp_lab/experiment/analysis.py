"""Comparisons of arms over seeds: differences at equal tokens, FLOP or time, phases, and curves with bands."""

from itertools import count, pairwise, takewhile
from statistics import mean, median
from typing import Literal

import numpy as np

from wmtp_lab.experiment.decoding import GREEDY
from wmtp_lab.experiment.intervals import Interval, t_interval
from wmtp_lab.experiment.results import Results
from wmtp_lab.plots import arm_styles
from wmtp_lab.report.runs import Series

Axis = Literal["tokens", "FLOP", "time"]
AXES: tuple[Axis, ...] = ("tokens", "FLOP", "time")
KEPT = "evaluation/noisy/noise/kept/"
"""And a kind of text: the share of it that heads 1 and up keep on held-out text."""
PHASES = ("first third", "second third", "last third")
_COSTS = {"FLOP": "flop", "time": "seconds"}
_TYPICAL = {"FLOP": mean, "time": median}


class Analysis:
    """An experiment whose runs are all there.

    Attributes:
        arms, seeds, baseline: of the plan.
        pairs: the arms that are compared, and with which: the baseline, or another.
        styles: how each arm is drawn.
        steps: optimizer steps of every run.
        tokens_per_step: of every arm.
    """

    def __init__(self, results: Results) -> None:
        plan = results.facts["plan"]
        self.results = results
        self.arms: list[str] = list(plan["arms"])
        self.seeds: list[int] = plan["seeds"]
        self.baseline: str = plan["baseline"]
        self.styles = arm_styles(self.arms, self.baseline)
        self.pairs = [(arm, self.baseline) for arm in self.arms if arm != self.baseline]
        self.pairs += [(arm, other) for arm, other in plan["also_compare"]]
        self.steps: int = results.facts["steps"]
        self.tokens_per_step: int = results.facts["tokens_per_step"]

    def per_step(self, arm: str, axis: Axis) -> float:
        """Return what a step of an arm takes after any warm-up: tokens, FLOP, or seconds by the clock of the costs."""
        if axis == "tokens":
            return self.tokens_per_step
        return _TYPICAL[axis](self.results.series[arm, None, f"cost/{_COSTS[axis]}"].values)

    def spent(self, arm: str, axis: Axis, steps: float) -> float:
        """Return what the first `steps` steps of an arm take, those of its warm-up included."""
        warm_up, first = self._warm_up(arm, axis)
        return min(steps, warm_up) * first + max(0, steps - warm_up) * self.per_step(arm, axis)

    def steps_within(self, arm: str, axis: Axis, budget: float) -> float:
        """Return how many steps an arm takes within a budget: the inverse of `spent`."""
        warm_up, first = self._warm_up(arm, axis)
        if budget <= warm_up * first:
            return budget / first
        return warm_up + (budget - warm_up * first) / self.per_step(arm, axis)

    def _warm_up(self, arm: str, axis: Axis) -> tuple[float, float]:
        """Return the steps of an arm's warm-up, and what each of them takes."""
        if axis == "tokens" or not self.results.has(arm, None, "cost/warm_up_steps"):
            return 0, 0
        steps = self.results.final(arm, None, "cost/warm_up_steps")
        series = self.results.series[arm, None, f"cost/warm_up/{_COSTS[axis]}"]
        return steps, _TYPICAL[axis](series.values)

    def arms_with(self, metric: str) -> list[str]:
        """Return the arms that have this metric with every seed."""
        return [arm for arm in self.arms if all(self.results.has(arm, seed, metric) for seed in self.seeds)]

    def head_losses(self) -> list[str]:
        """Return the names of the losses on clean held-out text of every head that the baseline has."""
        metrics = (f"evaluation/clean/ce/head_{head}" for head in count())
        return list(takewhile(lambda metric: self.baseline in self.arms_with(metric), metrics))

    def drafting_arms(self) -> list[str]:
        """Return the arms whose drafts were counted; none if the baseline's were not, with which they are compared."""
        arms = self.arms_with(GREEDY)
        return arms if self.baseline in arms else []

    def curves(self, arm: str, metric: str) -> list[Series]:
        """Return the metric over steps, a series for each seed."""
        return [self.results.series[arm, seed, metric] for seed in self.seeds]

    def final(self, arm: str, metric: str) -> Interval:
        """Return the metric's last value, over seeds."""
        return t_interval([series.values[-1] for series in self.curves(arm, metric)])

    def difference(self, arm: str, other: str, metric: str, axis: Axis = "tokens") -> Interval:
        """Return arm − other, paired by seed, where the one of them that ends first on that axis has ended.

        Between two evaluations a curve is taken to be straight.
        """
        budget = min(self.spent(name, axis, self.steps) for name in (arm, other))
        values = [
            [np.interp(self.steps_within(name, axis, budget), *series) for series in self.curves(name, metric)]
            for name in (arm, other)
        ]
        return t_interval([float(mine - its) for mine, its in zip(*values, strict=True)])

    def differences(self, metric: str, axis: Axis = "tokens") -> dict[tuple[str, str], Interval | None]:
        """Return the difference of each of `pairs`; None where one of them lacks the metric."""
        having = set(self.arms_with(metric))
        return {pair: self.difference(*pair, metric, axis) if having.issuperset(pair) else None for pair in self.pairs}

    def steps_to_baseline(self, arm: str, metric: str) -> list[float | None]:
        """Return for each seed the share of the steps until the baseline's final value was reached; None: never."""
        pairs = zip(self.curves(arm, metric), self.curves(self.baseline, metric), strict=True)
        reached = [first_step_at(series, baseline.values[-1]) for series, baseline in pairs]
        return [None if step is None else step / self.steps for step in reached]

    def by_phase(self, arm: str, metric: str) -> list[Interval | None]:
        """Return the mean over evaluations in each third of the training, the first one left out; None without any."""
        thirds = [self._thirds(curve) for curve in self.curves(arm, metric)]
        return [
            t_interval([mean(of_seed[i]) for of_seed in thirds]) if all(of_seed[i] for of_seed in thirds) else None
            for i in range(3)
        ]

    def kinds(self) -> list[str]:
        """Return kinds of text whose selection was measured, the clean one first."""
        found = {kind for arm in self.arms for kind in self.results.metrics(arm, KEPT)}
        return sorted(found, key=lambda kind: (kind != "clean", kind))

    def _thirds(self, series: Series) -> list[list[float]]:
        thirds: list[list[float]] = [[], [], []]
        for step, value in zip(*series, strict=True):
            if step > 0:
                thirds[(3 * step - 1) // self.steps].append(value)
        return thirds

    def largest_difference_at_start(self, metric: str) -> float:
        """Return how far arms of one seed differ at most before the first step, where weights and text are the same."""
        starts = [[self.results.series[arm, seed, metric].values[0] for arm in self.arms] for seed in self.seeds]
        return max(max(values) - min(values) for values in starts)


def accuracy_of(loss: str) -> str:
    """Return the name of the accuracy that stands beside a loss."""
    return loss.replace("/ce/", "/accuracy/")


def first_step_at(series: Series, value: float) -> float | None:
    """Return the first step at which a series is down to `value`, straight between its points; None if it never is."""
    points = list(zip(*series, strict=True))
    if points[0][1] <= value:
        return float(points[0][0])
    for (step, before), (next_step, after) in pairwise(points):
        if after <= value:
            return step + (next_step - step) * (before - value) / (before - after)
    return None


def band(curves: list[Series], minus: list[Series] | None = None) -> list[Interval]:
    """Return the interval over seeds at each step: of curves with common steps, or of their differences from others."""
    values = [series.values for series in curves]
    if minus is not None:
        values = [
            [a - b for a, b in zip(mine, its.values, strict=True)] for mine, its in zip(values, minus, strict=True)
        ]
    return [t_interval(points) for points in zip(*values, strict=True)]
