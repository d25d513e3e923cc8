"""Size and SHA-256 of every file of a checkpoint, and the newest checkpoint whose files still have them.

The ranks share the reading: rank r of R takes the files r, r + R, … and all know what any of them found.
"""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from wmtp_core import UserError
from wmtp_train.atomic_io import sync, write_json
from wmtp_train.checkpoint.retention import complete_checkpoints, quarantine
from wmtp_train.ranks.collective import describe, run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.mesh import Mesh

_NAME = "manifest.json"


def write_manifest(folder: Path, mesh: Mesh) -> None:
    """Describe every file in `folder`, each on the disk by then. Every rank must call it, when all have written."""
    names = mesh.broadcast_object(sorted(_files(folder)))
    what = f"checkpoint {folder} cannot be saved"
    described = run_on_all_ranks(
        mesh, lambda: {name: _describe_file(folder / name) for name in _share(names, mesh)}, what
    )
    files = {name: about for shares in mesh.all_gather_object(described) for name, about in shares.items()}
    run_on_rank0(mesh, lambda: write_json(folder / _NAME, files), what)


def newest_whole_checkpoint(folder: Path, mesh: Mesh) -> Path | None:
    """Return the newest checkpoint that is as it was saved; None where there is none at all. Every rank must call it.

    A newer one that is damaged is named on stderr and set aside as `step_….damaged`.

    Raises:
        UserError: there are checkpoints, and all of them are damaged; they stay as they are.
    """
    damaged: list[Path] = []
    flaw = ""
    for path in reversed(mesh.broadcast_object(complete_checkpoints(folder))):
        flaw = find_flaw(path, mesh)
        if not flaw:
            for other in damaged:
                run_on_rank0(mesh, partial(quarantine, other), f"checkpoint {other} cannot be set aside")
            return path
        damaged.append(path)
        if mesh.is_first:
            print(f"warning: checkpoint {path} is damaged: {flaw}; looking for the one before", file=sys.stderr)
    if damaged:
        run_on_rank0(mesh, lambda: _refuse(damaged, flaw), "")
    return None


def find_flaw(folder: Path, mesh: Mesh) -> str:
    """Return what is not as it was saved, the same on every rank; empty if nothing. Every rank must call it."""
    files = mesh.broadcast_object(_read_manifest(folder) if mesh.is_first else None)
    if isinstance(files, str):
        return files
    flaws = [_flaw_of_file(folder / name, files[name]) for name in _share(sorted(files), mesh)]
    return "; ".join(flaw for share in mesh.all_gather_object([flaw for flaw in flaws if flaw]) for flaw in share)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {_NAME}


def _share(names: list[str], mesh: Mesh) -> list[str]:
    return names[mesh.rank :: mesh.world]


def _describe_file(path: Path) -> dict[str, Any]:
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any] | str:
    """Return what the manifest says of each file, or what is wrong with it."""
    try:
        files = json.loads((folder / _NAME).read_bytes())
    except FileNotFoundError:
        return f"{_NAME} is missing, so this is not a checkpoint"
    except OSError as error:
        return f"{_NAME} cannot be read ({describe(error)})"
    except ValueError:  # of JSON and of UTF-8
        return f"{_NAME} is broken"
    described = isinstance(files, dict) and all(
        isinstance(about, dict) and about.keys() == {"bytes", "sha256"} for about in files.values()
    )
    return files if described and "run.json" in files else f"{_NAME} is broken"


def _flaw_of_file(path: Path, saved: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != saved["bytes"]:
            return f"{path.name} has {size} bytes, {saved['bytes']} were saved"
        return "" if _digest(path) == saved["sha256"] else f"{path.name} has another content than was saved"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({describe(error)})"


def _refuse(damaged: list[Path], flaw: str) -> None:
    raise UserError(
        f"checkpoint {damaged[-1]}: {flaw}; none of the {len(damaged)} in the folder is whole: "
        "restore one from a copy, or remove them and start again"
    )
