"""Time of several variants in turn, so that what else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

Sample = dict[str, float]
"""Seconds by clock: "cpu" (of all threads of this process) and "wall", or "cuda" (between two events)."""


class Spread(NamedTuple):
    """Median, smallest and largest of some measurements."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """Return the median, with the others in parentheses."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}\u2013{self.high:.{digits}f})"


def interleaved(
    operations: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[Sample]]:
    """Run every operation once to warm up, then A, B, C, A, B, C …: a sample per operation and round."""
    for operation in operations.values():
        operation()
    samples: dict[str, list[Sample]] = {name: [] for name in operations}
    for _ in range(rounds):
        for name, operation in operations.items():
            samples[name].append(_time_on_cuda(operation) if device.type == "cuda" else _time_on_cpu(operation))
    return samples


def clocks(samples: list[Sample]) -> list[str]:
    """Return the clocks that were read, the one to judge by first."""
    return list(samples[0])


def ratios(samples: list[Sample], first: list[Sample], clock: str) -> Spread:
    """Return round by round: what an operation took, over what the first one took in the same round."""
    return spread([mine[clock] / its[clock] for mine, its in zip(samples, first, strict=True)])


def spread(values: list[float]) -> Spread:
    """Return median, smallest and largest."""
    return Spread(median(values), min(values), max(values))


def _time_on_cpu(operation: Callable[[], Any]) -> Sample:
    cpu, wall = time.process_time(), time.perf_counter()
    operation()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _time_on_cuda(operation: Callable[[], Any]) -> Sample:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    operation()
    end.record()
    torch.cuda.synchronize()
    return {"cuda": start.elapsed_time(end) / 1000}
