"""The port for places where a run's figures go."""

from abc import ABC, abstractmethod
from pathlib import Path

from wmtp_train.atomic_io import atomic_file
from wmtp_train.settings.schema import Settings


class Monitor(ABC):
    """One destination of figures over optimizer steps. Rank 0 alone opens one.

    Args:
        settings: of the run.
        first_step: the first whose figures are going to be written; what a run that was cut off wrote from there on is
            dropped where that can be done. 0: a new run. None: nothing is dropped, figures are added to what is there.
    """

    @abstractmethod
    def __init__(self, settings: Settings, first_step: int | None) -> None: ...

    @abstractmethod
    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add figures by name at `step`, the number of optimizer steps done; others can read them on return."""

    def write_final(self, metrics: dict[str, float], step: int) -> None:
        """Add what an evaluation of the finished run found, as `final/…`."""
        self.write({f"final/{name}": value for name, value in metrics.items()}, step)

    @abstractmethod
    def close(self, finished: bool) -> None:
        """End; `finished` is False for a run that has stopped before its last step."""


def read_run_id(file: Path, first_step: int | None) -> str | None:
    """Return the id under which a service knows this run; None for a new one."""
    return file.read_text().strip() if first_step != 0 and file.exists() else None


def keep_run_id(file: Path, run_id: str) -> None:
    """Keep the id for the next start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        partial.write_text(f"{run_id}\n")
