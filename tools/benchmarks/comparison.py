"""What was measured of several variants on one shape."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from wmtp_lab.measure.stopwatch import Sample, Spread, clocks, ratios, spread


@dataclass(frozen=True)
class Measurement:
    """All of one variant. What was not measured is None."""

    samples: list[Sample]
    """Seconds by clock, a sample a round; the same round of two variants can be compared."""
    error: float
    """Largest error of loss and gradients on the shape of the check, of their norm; what it is against: `check`."""
    peak_bytes: int | None = None
    """Peak memory beyond inputs, results included."""
    pass_flop: float | None = None
    """Matrix-product FLOP of forward and backward that torch counted, in passes over the unembedding (U)."""
    hinted_wrong: float | None = None
    """Share of predictions whose selection was hinted wrong, and fixed."""


@dataclass(frozen=True)
class Comparison:
    """Variants of one operation on one shape; the first is what the others are held against."""

    operation: str
    """ "loss" or "step"."""
    title: str
    """What the shape is, in words."""
    shape: dict[str, int]
    memory_shape: dict[str, int]
    """The shape that peak memory was measured on."""
    measurements: dict[str, Measurement] = field(default_factory=dict)

    @property
    def clocks(self) -> list[str]:
        """The clocks that were read, the one to judge by first."""
        return clocks(self._first.samples)

    def time_ratio(self, name: str, clock: str) -> Spread:
        """Time of a variant over that of the first."""
        return ratios(self.measurements[name].samples, self._first.samples, clock)

    def seconds(self, name: str, clock: str) -> Spread:
        """Time of a variant."""
        return spread([sample[clock] for sample in self.measurements[name].samples])

    def memory_ratio(self, name: str) -> float | None:
        """Return peak memory of a variant over that of the first."""
        mine, its = self.measurements[name].peak_bytes, self._first.peak_bytes
        return None if mine is None or its is None else mine / its

    @property
    def _first(self) -> Measurement:
        return next(iter(self.measurements.values()))


Operation = TypeVar("Operation", bound=Callable[[], Any])


def those_that_fit(operations: Mapping[str, Operation], title: str, skipped: dict[str, str]) -> dict[str, Operation]:
    """Run every operation once, and return those for which the device's memory was enough.

    Args:
        operations: by name.
        title: of the shape.
        skipped: receives those that did not fit.
    """
    fit = {}
    for name, operation in operations.items():
        try:
            operation()
            fit[name] = operation
        except torch.OutOfMemoryError as error:
            skipped[f"{name}, {title}"] = str(error).splitlines()[0]
        gc.collect()  # what the one that failed held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return fit
