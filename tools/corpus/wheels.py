"""Pinned wheels as a source of text: fetched once into a folder, read straight out of the zip, never installed."""

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from corpus.sources import SourceFile, decode, wanted
from wmtp_core.errors import UserError

PINNED = Path(__file__).with_name("wheels.txt")
# One target for everybody, since wheels of different platforms hold different generated files.
_TARGET = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
_TARGET += [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_27", "_2_28")]


class WheelFiles(NamedTuple):
    """One line of `wheels.txt`: a requirement `name==version` and a pattern of paths inside its wheel."""

    name: str
    version: str
    natural: bool
    pattern: str


def read_pins(file: Path = PINNED) -> list[WheelFiles]:
    """Return the lines of `wheels.txt`."""
    pins = []
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement, role, pattern = line.split()
            name, version = requirement.split("==")
            assert role in ("code", "natural"), line
            pins.append(WheelFiles(name, version, role == "natural", pattern))
    return pins


def wheel_sources(pins: list[WheelFiles], folder: Path) -> Iterator[SourceFile]:
    """Return the files that `pins` name; wheels which `folder` lacks are downloaded into it.

    Raises:
        UserError: a wheel is neither in `folder` nor to be had, or is not a zip file.
    """
    for pin in pins:
        wheel = find_wheel(pin, folder) or _download(pin, folder)
        if not zipfile.is_zipfile(wheel):
            raise UserError(f"wheel {wheel} is not a zip file; delete it, and it will be fetched again")
        with zipfile.ZipFile(wheel) as archive:
            for path in archive.namelist():
                kept = fnmatchcase(path, pin.pattern) and (pin.natural or wanted(path))
                if kept and (text := decode(archive.read(path))) is not None:
                    yield SourceFile(path, text, pin.natural)


def wheel_versions(pins: list[WheelFiles], folder: Path) -> dict[str, str]:
    """Return each wheel's version and SHA-256, by name; `folder` must hold them all."""
    versions = {}
    for pin in pins:
        wheel = find_wheel(pin, folder)
        assert wheel is not None, pin
        versions[pin.name] = f"{pin.version} sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    return versions


def find_wheel(pin: WheelFiles, folder: Path) -> Path | None:
    """Return the wheel of this name and version in `folder`, if it is there."""
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if (_normalized(name), version) == (_normalized(pin.name), pin.version):
            return wheel
    return None


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _download(pin: WheelFiles, folder: Path) -> Path:
    requirement = f"{pin.name}=={pin.version}"
    print(f"fetching {requirement} into {folder}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += [*_TARGET, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = find_wheel(pin, folder)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1].removeprefix("ERROR: ")
        raise UserError(f"wheel {requirement} cannot be fetched ({reason}); put it into {folder} yourself")
    return wheel
