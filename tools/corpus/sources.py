"""Python sources that every installation has: the standard library, sympy and networkx (torch needs both)."""

import importlib.util
import platform
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from wmtp_core.errors import UserError

PACKAGES = ("sympy", "networkx")
# Tests, what only some distributions ship, and what is written when Python is built: a corpus must not depend on them.
_LEFT_OUT = ["test", "tests", "test[_-]*", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"]
_LEFT_OUT += ["venv", "*-packages", "__pycache__", "config-*", "_sysconfigdata*", "sitecustomize.py"]


class SourceFile(NamedTuple):
    """One file: its path relative to where modules are imported from, its text, and whether it is known to be noise."""

    path: str
    text: str
    natural: bool = False


def installed_sources() -> Iterator[SourceFile]:
    """Return the Python files of the standard library and of `PACKAGES`, in no particular order."""
    yield from _python_files(Path(sysconfig.get_path("stdlib")), "")
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"source installed: package {package!r} is not installed; run `pip install {package}`")
        yield from _python_files(Path(spec.submodule_search_locations[0]), f"{package}/")


def installed_versions() -> dict[str, str]:
    """Return what the text of `installed_sources` depends on: the versions of Python and of the packages."""
    return {"python": platform.python_version()} | {package: metadata.version(package) for package in PACKAGES}


def wanted(path: str) -> bool:
    """Return whether the file at this relative path is neither a test nor peculiar to one machine."""
    return not any(fnmatchcase(part, pattern) for part in path.split("/") for pattern in _LEFT_OUT)


def decode(data: bytes) -> str | None:
    """Return UTF-8 text with plain newlines, or None where the bytes are in another encoding."""
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None


def _python_files(root: Path, prefix: str) -> Iterator[SourceFile]:
    if not root.is_dir():
        raise UserError(f"source installed: no Python sources at {root}; use a Python that keeps its library as files")
    for file in root.rglob("*.py"):
        path = file.relative_to(root).as_posix()
        if wanted(path) and (text := decode(file.read_bytes())) is not None:
            yield SourceFile(prefix + path, text)
