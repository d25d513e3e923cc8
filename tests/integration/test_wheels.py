"""Every package as pip builds and installs it: from its sdist, beside no other of ours than it declares."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGES = [path.parent for path in sorted(ROOT.glob("packages/*/pyproject.toml"))]
NAMES = [path.name for path in PACKAGES]
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
IMPORTED = {  # what a user of each begins with
    "wmtp-core": "wmtp_core",
    "wmtp-models": "wmtp_models.training.hf_trainer",
    "wmtp-train": "wmtp_train.settings.schema",
    "wmtp-eval": "wmtp_eval",
    "wmtp-lab": "wmtp_lab.report.page",
}
LOOK = """
import importlib, importlib.metadata, importlib.util, sys, sysconfig
print(importlib.import_module(sys.argv[1]).__file__)
print(*[name for name in sys.argv[2:] if importlib.util.find_spec(name)])
here = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])  # not of the third party
print(*[found.value for package in here for found in package.entry_points if found.group == "wmtp.benchmarks"])
"""


def run(*command: object, folder: Path | None = None, code: int = 0) -> str:
    """What a command prints; without what this process has on its path."""
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def sources(package: Path) -> set[str]:
    """The files that belong into a wheel."""
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=package, capture_output=True, text=True, check=True)
    return {name.removeprefix("src/") for name in tracked.stdout.splitlines()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of every package, and the wheel made of it."""
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        copy = tmp_path_factory.mktemp("sources") / package.name
        for name in ["pyproject.toml", "README.md", "LICENSE", *(f"src/{file}" for file in sources(package))]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((package / name).read_bytes())
        run(sys.executable, "-c", BUILD_SDIST, folder, folder=copy)
    offline = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, *sorted(folder.glob("*.tar.gz")))
    return folder


def wheel_of(dist: Path, name: str) -> Path:
    (wheel,) = dist.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def declared(dist: Path, name: str) -> list[str]:
    """A package and those of ours that it needs, by the metadata of their wheels."""
    with zipfile.ZipFile(wheel_of(dist, name)) as wheel:
        (metadata,) = [entry for entry in wheel.namelist() if entry.endswith(".dist-info/METADATA")]
        needed = re.findall(r"^Requires-Dist: (wmtp-\w+)$", wheel.read(metadata).decode(), re.MULTILINE)
    return [name, *(other for sibling in needed for other in declared(dist, sibling))]


@pytest.mark.parametrize("package", PACKAGES, ids=NAMES)
def test_a_wheel_and_an_sdist_have_every_file_and_the_license(package, dist):
    with zipfile.ZipFile(wheel_of(dist, package.name)) as wheel:
        inside = set(wheel.namelist())
    info = {name for name in inside if ".dist-info/" in name}
    assert inside - info == sources(package)
    assert any(name.endswith("/py.typed") for name in inside)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in info)
    (sdist,) = dist.glob(f"{package.name.replace('-', '_')}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", *(f"src/{name}" for name in sources(package))} <= packed


@pytest.mark.parametrize("name", NAMES)
def test_it_works_beside_what_it_declares_alone(name, dist, tmp_path):
    """In a fresh environment that sees this one's third-party packages, and of ours what is installed there."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    (home,) = environment.glob("lib/python*/site-packages")
    (home / "third_party.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    ours = declared(dist, name)
    wheels = [wheel_of(dist, other) for other in ours]
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *wheels)
    modules = [other.replace("-", "_") for other in NAMES]
    place, found, benchmarks = run(python, "-I", "-c", LOOK, IMPORTED[name], *modules, folder=tmp_path).split("\n")[:3]
    assert Path(place).is_relative_to(environment)
    assert sorted(found.split()) == sorted(other.replace("-", "_") for other in ours)
    assert benchmarks == ("wmtp_eval" if name == "wmtp-eval" else "")
    command = environment / "bin/wmtp"
    assert command.exists() == ("wmtp-train" in ours)
    if name == "wmtp-train":
        assert "  evaluate  evaluate a trained run" in run(command, "--help").splitlines()
        said = run(command, "train", "--tiny", folder=tmp_path, code=2)
        assert said.splitlines()[-1].startswith("error: --tiny builds its data with tools/ of the repository")
