"""Files and folders that are on the disk whole or not at all, whatever is killed and whenever the power fails."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def partial_of(path: Path) -> Path:
    """Return the hidden name beside `path` under which it is made."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the name to write a file under, which becomes `path` when the block ends without an error."""
    partial = partial_of(path)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` aside, put it on the disk, and give it its name by a rename."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2))


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file; on the disk on return."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_tensors(state: Any, path: Path) -> None:
    """Save with `torch.save`; on the disk on return.

    Raises:
        OSError: no room, no permission, …; torch alone would tell of a misplaced write instead.
    """
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError):
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


def commit_dir(partial: Path, folder: Path) -> None:
    """Give the finished folder `partial`, whose files are on the disk, its name; an older `folder` is replaced."""
    sync(partial)
    old = _hide(folder)
    os.replace(partial, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def commit_dir_once(partial: Path, folder: Path) -> None:
    """Do the same as `commit_dir`, but where another process was first: then `folder` stays."""
    sync(partial)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    sync(folder.parent)


def remove_dir(folder: Path) -> None:
    """Remove a folder, if it is there, so that a kill meanwhile leaves nothing half under its name."""
    shutil.rmtree(_hide(folder), ignore_errors=True)


def _hide(folder: Path) -> Path:
    hidden = partial_of(folder.with_name(f"{folder.name}.discarded"))
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.is_dir():
        os.replace(folder, hidden)
    return hidden


def remove_partials(folder: Path, pattern: str) -> None:
    """Remove what a kill left half-made of the names that match `pattern`."""
    for left in folder.glob(f".{pattern}.partial"):
        shutil.rmtree(left)


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on the disk: a power cut keeps renames and loses data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
