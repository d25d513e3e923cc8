"""`gpu_check.py` on a CPU: all of it in tiny shapes, and what it does where a part fails or time is over."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpu_check
from gpu_checking.parts import NEVER_HERE, PARTS, Task, run_part
from gpu_checking.record import CUT_OFF, DONE, FAILED, NOT_RUN, Record
from gpu_checking.report import Report

ROOT = Path(__file__).parents[2]
NAMES = [part.name for part in PARTS]


def parts_of(folder: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((folder / "report.json").read_text())["parts"]
    return parts


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu_does_every_part(tmp_path: Path) -> None:
    assert gpu_check.main(["--output", str(tmp_path), "--device", "cpu", "--quick", "--minutes", "20"]) == 0
    parts = parts_of(tmp_path)
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(NAMES, DONE)
    assert parts["tests"]["data"]["all"]["failed"] == 0
    assert parts["tests"]["data"]["all"]["passed"] > 50
    assert {"tiny, mtp-baseline", "tiny, rho1-wmtp", "tiny at stage 3, mtp-baseline"} == parts["training"][
        "data"
    ].keys()
    assert "GB are free" in parts["training"]["missing"]["too large"]
    page = (tmp_path / "report.md").read_text()
    assert "A rehearsal on a CPU" in page
    assert "no GPU was at hand" not in page
    headings = [line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")]
    assert headings == [*NAMES, "not run"]
    for name in NAMES:
        assert json.loads((tmp_path / f"{name}.json").read_text())["sections"] == parts[name]["sections"]


@pytest.mark.slow
def test_what_no_time_is_left_for_is_said_so(tmp_path: Path) -> None:
    assert gpu_check.main(["--output", str(tmp_path), "--device", "cpu", "--quick", "--minutes", "0.15"]) == 1
    parts = parts_of(tmp_path)
    assert parts["environment"]["status"] == parts["decoding"]["status"] == NOT_RUN
    assert parts["step"]["status"] == CUT_OFF  # the first that the others left enough time to start
    page = (tmp_path / "report.md").read_text()
    assert (
        "* decoding: decoding at 0.1B, plain and drafting: milliseconds a forward, tokens/s: no time was left" in page
    )
    assert "| step | **cut off** |" in page


def run_as(monkeypatch: pytest.MonkeyPatch, folder: Path, run: Any) -> Record:
    monkeypatch.setitem(sys.modules, "gpu_checking.made_up", SimpleNamespace(run=run))
    assert run_part("made_up", folder / "made_up.json", Task("cpu", True)) == 1
    return Record.read(folder / "made_up.json")


def test_a_part_that_fails_leaves_what_it_had_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(record: Record, task: Task) -> None:
        record.put("first", 1, "| one |")
        raise ValueError("the second\nis wrong")

    found = run_as(monkeypatch, tmp_path, run)
    assert (found.status, found.reason) == (FAILED, "ValueError: the second")
    assert (found.data, found.sections) == ({"first": 1}, ["| one |"])


def test_a_part_whose_packages_are_missing_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(record: Record, task: Task) -> None:
        __import__("a_package_that_is_not_installed")

    found = run_as(monkeypatch, tmp_path, run)
    assert found.status == NOT_RUN
    assert found.reason.startswith("No module named 'a_package_that_is_not_installed'; pip install")


def test_the_page_says_line_by_line_what_was_not_run() -> None:
    page = (ROOT / "docs/gpu.md").read_text()
    if "Nothing was run on a GPU" in page:  # the day it is, a report stands there
        assert page == Report(None, "", []).markdown()
        for part in PARTS:
            assert all(f"* {part.name}: {item}: no GPU was at hand" in page for item in part.items)
    assert all(f"* {what}: {why}" in page for what, why in NEVER_HERE.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{file}"], "error: --output {file}: File exists; name another folder\n"),
        (
            ["--output", "{file}.d", "--device", "cpu"],
            "error: --device cpu: full shapes take hours there; add --quick\n",
        ),
    ],
)
def test_what_the_user_can_fix_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert gpu_check.main([argument.format(file=file) for argument in arguments]) == 2
    assert capsys.readouterr().err == message.format(file=file)
