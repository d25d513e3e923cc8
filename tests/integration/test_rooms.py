"""Imports go one way: core ← models ← train ← launch; and core knows torch and nothing else."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "wmtp_core": ROOT / "packages/wmtp-core/src/wmtp_core",
    "wmtp_models": ROOT / "packages/wmtp-models/src/wmtp_models",
    "wmtp_train": ROOT / "packages/wmtp-train/src/wmtp_train",
    "wmtp_eval": ROOT / "packages/wmtp-eval/src/wmtp_eval",
    "wmtp_lab": ROOT / "packages/wmtp-lab/src/wmtp_lab",
    "launch": ROOT / "launch",
    "tools": ROOT / "tools",
}
LAUNCH = {path.stem for path in ROOMS["launch"].glob("*.py")}
FORBIDDEN = {
    "wmtp_core": {"wmtp_models", "wmtp_train", "wmtp_eval", "wmtp_lab", *LAUNCH},
    "wmtp_models": {"wmtp_train", "wmtp_eval", "wmtp_lab", "deepspeed", "datasets", "tensorboard", *LAUNCH},
    "wmtp_train": {"wmtp_eval", "wmtp_lab", *LAUNCH},
    "wmtp_eval": {"wmtp_lab", *LAUNCH},
    "wmtp_lab": LAUNCH,
    "launch": set(),
    "tools": LAUNCH | {"launch"},
}


def sources(room: str) -> list[Path]:
    return sorted(ROOMS[room].rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """The first word of every absolute import, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


def imports_of(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(), str(path))))


def test_every_way_of_importing_is_seen():
    code = "import a.b, c as d\nfrom e.f import g\nfrom . import h\ndef i():\n    from j import k\n"
    assert set(imports(ast.parse(code))) == {"a", "c", "e", "j"}


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_from_one_above_it(room):
    # A tool may have a module of the same name as a launch script; then it is its own that it imports.
    own = {path.stem for path in sources(room)} | {path.parent.name for path in sources(room)}
    assert len(sources(room)) >= 3
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imports_of(path) & FORBIDDEN[room]
        if name not in own
    }
    assert wrong == set()


def test_every_room_uses_the_one_below_it():
    for room, below in (("wmtp_models", "wmtp_core"), ("wmtp_train", "wmtp_models"), ("launch", "wmtp_train")):
        assert any(below in imports_of(path) for path in sources(room)), room


def test_core_needs_torch_and_the_standard_library_alone():
    # triton comes with torch where there is a GPU to compile for.
    allowed = {"torch", "triton", "wmtp_core", *sys.stdlib_module_names}
    for path in sources("wmtp_core"):
        assert imports_of(path) <= allowed, path


def test_packages_import_absolutely():
    for room in ("wmtp_core", "wmtp_models", "wmtp_train", "wmtp_eval", "wmtp_lab"):
        for path in sources(room):
            levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not any(levels), path


@pytest.mark.parametrize(
    ("package", "below"),
    [
        ("wmtp-core", []),
        ("wmtp-models", ["wmtp-core"]),
        ("wmtp-train", ["wmtp-models"]),
        ("wmtp-eval", ["wmtp-train"]),
        ("wmtp-lab", ["wmtp-train"]),
    ],
)
def test_a_package_declares_its_lower_sibling_alone(package, below):
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    siblings = [name for name in project["dependencies"] if name.startswith("wmtp-")]
    assert siblings == below


def test_deepspeed_is_known_in_one_folder():
    """Everything else sees the engine's port, and a few functions of that folder."""
    home = ROOMS["wmtp_train"] / "engines/deepspeed"
    knowing = {path for room in ROOMS for path in sources(room) if "deepspeed" in imports_of(path)}
    assert len(knowing) >= 4
    assert {path.parent for path in knowing} == {home}


def test_nobody_says_world_but_the_mesh():
    """Collectives and their groups come from the mesh that is handed around; core is handed a group."""
    spoken = {
        str(path.relative_to(ROOMS["wmtp_train"]))
        for path in sources("wmtp_train")
        if re.search(r"\bdist\.(get_rank|get_world_size|all_|broadcast|barrier|group\.WORLD)", path.read_text())
    }
    assert spoken == {"ranks/mesh.py", "ranks/lifecycle.py", "ranks/preemption.py"}
