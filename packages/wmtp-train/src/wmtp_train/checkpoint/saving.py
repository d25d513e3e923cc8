"""A checkpoint is made aside, described by a manifest and made current by a rename; only then older ones go."""

import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wmtp_core import UserError
from wmtp_train.atomic_io import commit_dir, partial_of, remove_partials, write_json
from wmtp_train.checkpoint.manifest import write_manifest
from wmtp_train.checkpoint.retention import checkpoint_name, rotate
from wmtp_train.checkpoint.rng import save_rng
from wmtp_train.engines.base import Engine
from wmtp_train.ranks.collective import describe, run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.mesh import Mesh

_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "wmtp-core", "wmtp-models", "wmtp-train")


def save_checkpoint(
    engine: Engine, mesh: Mesh, folder: Path, step: int, state: dict[str, Any], keep: int, best_by: str | None = None
) -> None:
    """Save everything that a resumed run needs as `folder/step_NNNNNNNN`. Every rank must call it.

    A checkpoint of this step that is there already is this one, and stays.

    Args:
        engine: whose state is saved.
        mesh: the processes.
        folder: of the run's checkpoints.
        step: optimizer steps done.
        state: what the engine does not own; JSON, the same on every rank. `state["metrics"]` are held-out metrics.
        keep: how many of the newest checkpoints stay.
        best_by: the one of the metrics whose lowest checkpoint stays as well.

    Raises:
        UserError: a rank cannot write; what it wrote is removed, and the checkpoints before are as they were.
    """
    path = folder / checkpoint_name(step)
    if mesh.broadcast_object(path.is_dir()):
        return
    partial, what = partial_of(path), f"checkpoint {path} cannot be saved"
    about = {**state, "step": step, "world_size": mesh.world, "stage": engine.stage, "versions": versions()}
    try:
        run_on_rank0(mesh, lambda: _make(partial), what)
        errors = engine.save(partial)
        run_on_all_ranks(mesh, lambda: _finish_rank(errors, partial, mesh), what)
        run_on_rank0(mesh, lambda: write_json(partial / "run.json", about), what)
        write_manifest(partial, mesh)
        run_on_rank0(mesh, lambda: commit_dir(partial, path), what)
    except UserError:  # rank 0 alone raises it, when every rank has stopped writing
        shutil.rmtree(partial, ignore_errors=True)
        raise
    run_on_rank0(mesh, lambda: _rotate(path, keep, best_by), "")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute this run."""
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


def _finish_rank(errors: list[OSError], partial: Path, mesh: Mesh) -> None:
    if errors:
        raise errors[0]
    save_rng(partial, mesh)
