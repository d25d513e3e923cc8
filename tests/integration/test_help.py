"""`--help` is answered before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
HEAVY = ("torch", "transformers", "deepspeed", "datasets")


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.py") if path.name != "tiny.py"))
def test_help_imports_nothing_heavy(script):
    command = [sys.executable, "-X", "importtime", LAUNCH / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--help" in done.stdout or "-h" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported  # the list is one
    assert imported.isdisjoint(HEAVY)
