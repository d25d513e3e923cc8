"""What one of several ranks does: it plans the head weights of its part of every job."""

import dataclasses
from typing import Any

from signals import weights_of


def weigh(mesh: Any, what: str, jobs: list[Any]) -> list[Any]:
    """Weights, or counts, of each job `(rule, signals by rank)`."""
    found = []
    for rule, signals_of_ranks in jobs:
        if "group" in {field.name for field in dataclasses.fields(rule)}:
            rule = dataclasses.replace(rule, group=mesh.data_parallel)
        signals = signals_of_ranks[mesh.rank]
        found.append(rule.plan(signals.inputs).counts if what == "counts" else weights_of(rule, signals))
    return found
