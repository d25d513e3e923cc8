"""The tests marked `cuda`, each one's outcome written when it is known."""

import os
import time
from typing import Any

import pytest

from gpu_checking import ROOT
from gpu_checking.parts import Task
from gpu_checking.record import FAILED, Record
from wmtp_lab.tables import markdown_table


class _Outcomes:
    """A plugin of pytest that tells the record."""

    def __init__(self, record: Record) -> None:
        self.record, self.found = record, {"passed": 0, "failed": 0, "skipped": 0}
        self.rows: list[list[str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that has run, or whose preparation did not let it."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.found[report.outcome] += 1
        name = report.nodeid.removeprefix("tests/cuda/")
        if report.outcome == "skipped":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.record.missing[name] = reason.removeprefix("Skipped: ")
        if report.outcome == "failed":
            self.rows.append([name.replace("|", "\\|"), _last_line(report.longreprtext)])
        lines = [", ".join(f"{count} {outcome}" for outcome, count in self.found.items()) + "."]
        if self.rows:
            lines += ["", markdown_table(["failed", "why"], self.rows)]
        self.record.sections = ["\n".join(lines)]
        self.record.put(name, {"outcome": report.outcome, "seconds": round(report.duration, 2)})


def run(record: Record, task: Task) -> None:
    """Run them; the part failed if one of them did."""
    os.environ["WMTP_TEST_DEVICE"] = task.device
    outcomes, began = _Outcomes(record), time.monotonic()
    arguments = ["-m", "cuda", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    code = pytest.main([*arguments, "--tb=short", str(ROOT / "tests/cuda")], plugins=[outcomes])
    record.put("all", outcomes.found | {"seconds": round(time.monotonic() - began, 1)})
    if code != pytest.ExitCode.OK:
        record.end(FAILED, f"{outcomes.found['failed']} tests failed (pytest: {pytest.ExitCode(code).name})")


def _last_line(text: str) -> str:
    """Return pytest's own line of what went wrong: the first that begins with E."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return next(iter(lines), text.strip().splitlines()[-1] if text.strip() else "").replace("|", "\\|")[:300]
