"""`--help` is answered before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from wmtp_train.commands import COMMANDS

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = {path.stem: path for path in LAUNCH.glob("*.py")}
HEAVY = ("torch", "transformers", "deepspeed", "datasets")


def test_every_command_has_a_script_and_every_script_a_command():
    assert SCRIPTS.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    "way",
    [*((path,) for path in sorted(SCRIPTS.values())), ("-m", "wmtp_train"), ("-m", "wmtp_train", "train")],
    ids=lambda way: Path(way[-1]).name,
)
def test_help_imports_nothing_heavy(way):
    command = [sys.executable, "-X", "importtime", *way, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--help" in done.stdout or "-h" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "wmtp_train.commands" in imported  # the list is one
    assert imported.isdisjoint(HEAVY)
