"""A formula beside what was seen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One of them."""

    name: str
    calculated: float
    measured: float
    tolerance: float
    """Relative; 0: to the last digit."""

    @property
    def holds(self) -> bool:
        """Whether they agree."""
        return abs(self.measured - self.calculated) <= self.tolerance * self.calculated
