"""Figures as lines of JSON, for whatever reads files."""

import json
import math
from pathlib import Path

from wmtp_core import UserError
from wmtp_train.atomic_io import atomic_file
from wmtp_train.metrics.monitors.base import Monitor
from wmtp_train.settings.schema import Settings


class JsonLines(Monitor):
    """`output_dir/metrics.jsonl`: a line `{"step": …, name: value, …}` for each call; null for what is not finite.

    Lines from `first_step` on, and one that a kill left half-written, are dropped.

    Raises:
        UserError: what is there is something else.
    """

    def __init__(self, settings: Settings, first_step: int | None) -> None:
        path = settings.output_dir / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _keep_before(path, math.inf if first_step is None else first_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._file.close()


def _keep_before(path: Path, step: float) -> None:
    with (
        atomic_file(path) as partial,
        path.open(encoding="utf-8") as lines,
        partial.open("w", encoding="utf-8") as kept,
    ):
        kept.writelines(line for line in lines if line.endswith("\n") and _step(path, line) < step)


def _step(path: Path, line: str) -> int:
    try:
        step: int = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: {line.strip()[:40]!r} is no line of figures with a step: move the file away"
        ) from error
    return step
