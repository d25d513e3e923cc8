"""A checkpoint is made aside, described by a manifest and made current by a rename; only then older ones go."""

import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_core import UserError
from wmtp_train.atomic_io import commit_dir, partial_of, remove_partials, write_json
from wmtp_train.checkpoint.manifest import write_manifest
from wmtp_train.checkpoint.retention import checkpoint_name, rotate
from wmtp_train.checkpoint.rng import save_rng
from wmtp_train.engines.deepspeed.writer import deferred_write_errors
from wmtp_train.ranks.collective import broadcast_object, describe, run_on_all_ranks, run_on_rank0

_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "wmtp-core", "wmtp-models", "wmtp-train")


def save_checkpoint(
    engine: DeepSpeedEngine, folder: Path, step: int, state: dict[str, Any], keep: int, best_by: str | None = None
) -> None:
    """Save everything that a resumed run needs as `folder/step_NNNNNNNN`. Every rank must call it.

    A checkpoint of this step that is there already is this one, and stays.

    Args:
        state: what the engine does not own; JSON, the same on every rank. `state["figures"]` are held-out figures.
        keep: how many of the newest checkpoints stay.
        best_by: the one of the figures whose lowest checkpoint stays as well.

    Raises:
        UserError: a rank cannot write; what it wrote is removed, and the checkpoints before are as they were.
    """
    path = folder / checkpoint_name(step)
    if broadcast_object(path.is_dir()):
        return
    partial, what = partial_of(path), f"checkpoint {path} cannot be saved"
    about = {
        **state,
        "step": step,
        "world_size": dist.get_world_size(),
        "stage": engine.zero_optimization_stage(),
        "versions": versions(),
    }
    try:
        run_on_rank0(lambda: _make(partial), what)
        with deferred_write_errors(engine) as failures:
            engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
        run_on_all_ranks(lambda: _finish_rank(failures, partial), what)
        run_on_rank0(lambda: write_json(partial / "run.json", about), what)
        write_manifest(partial)
        run_on_rank0(lambda: commit_dir(partial, path), what)
    except UserError:  # rank 0 alone raises it, when every rank has stopped writing
        shutil.rmtree(partial, ignore_errors=True)
        raise
    run_on_rank0(lambda: _rotate(path, keep, best_by), "")


def versions() -> dict[str, str]:
    """What computes this run."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _make(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(partial.parent, "step_*")
    partial.mkdir()


def _rotate(newest: Path, keep: int, best_by: str | None) -> None:
    try:
        rotate(newest.parent, keep, best_by)
    except OSError as error:  # a nuisance, while the newest one is saved
        print(f"warning: checkpoints older than {newest} cannot be removed: {describe(error)}", file=sys.stderr)


def _finish_rank(failures: list[OSError], partial: Path) -> None:
    if failures:
        raise failures[0]
    save_rng(partial)
