"""The folder of a run's checkpoints: their names and which of them stay."""

import json
import math
import os
import re
from pathlib import Path

from wmtp_train.atomic_io import remove_dir

PREFIX = "step_"
HIGHEST_IS_BEST = ("tokens_per_forward", "sampled_tokens_per_forward")
"""Held-out metrics of a set that are better the higher they are; losses are the other way round."""


def checkpoint_name(step: int) -> str:
    """Return the folder of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that were made current and not set aside, oldest first."""
    named = (path for path in folder.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d{{8,}}", path.name))
    return sorted(named, key=lambda path: int(path.name.removeprefix(PREFIX)))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step in `folder`, or None."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def rotate(folder: Path, keep: int, best_by: str | None) -> None:
    """Remove all but the `keep` newest checkpoints and those of the best metric; the newest must be whole and on disk.

    Args:
        best_by: the held-out metric, as saved with the checkpoints, whose best value is never removed.
    """
    complete = complete_checkpoints(folder)
    metrics = {path: _metric(path, best_by) for path in complete} if best_by else {}
    best = min(filter(math.isfinite, metrics.values()), default=None)
    for old in complete[:-keep]:
        if best is None or metrics[old] != best:
            remove_dir(old)


def quarantine(path: Path) -> None:
    """Take a damaged checkpoint out of the count, for a person to look at; nothing of it is removed."""
    aside = path.with_name(f"{path.name}.damaged")
    remove_dir(aside)
    os.replace(path, aside)


def _metric(path: Path, name: str) -> float:
    """Return a checkpoint's metric, the lower the better; infinite where it was saved without, or is damaged."""
    try:
        about = json.loads((path / "run.json").read_bytes())
    except (OSError, ValueError):  # of JSON and of UTF-8
        return math.inf
    value: float = about.get("metrics", {}).get(name, math.inf)
    return -value if name.rpartition("/")[2] in HIGHEST_IS_BEST else value
