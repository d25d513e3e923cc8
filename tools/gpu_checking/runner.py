"""Runs the parts one after the other, each in a process of its own that ends when its time does."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from gpu_checking import ROOT, SOURCES
from gpu_checking.parts import PARTS, Part, Task
from gpu_checking.record import CUT_OFF, DONE, FAILED, NOT_RUN, Record

_LEAST_SECONDS = 5  # less is over before torch is imported
_TAIL = 4000  # characters
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_parts(output: Path, task: Task, seconds: float) -> Iterator[list[Record]]:
    """Run all parts in `seconds` together; yields the records so far after each."""
    records: list[Record] = []
    start, share = time.monotonic(), 0.0
    for part in PARTS:
        share += part.share
        left = start + share * seconds - time.monotonic()
        records.append(_run(part, output / f"{part.name}.json", task, left))
        yield records


def _run(part: Part, path: Path, task: Task, seconds: float) -> Record:
    path.unlink(missing_ok=True)
    if seconds < _LEAST_SECONDS:
        record = Record(path)
        record.end(NOT_RUN, "no time was left")
        return record
    command = [sys.executable, str(ROOT / "tools/gpu_check.py"), "--part", part.name, "--output", str(path.parent)]
    command += ["--device", task.device, *(["--quick"] if task.quick else [])]
    # Each part is a process by itself, whatever launched this one.
    alone = {name: value for name, value in os.environ.items() if name not in _OF_LAUNCHERS}
    environment = alone | {"PYTHONPATH": os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if task.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        code = _wait(command, environment, printed, seconds)
        tail = _tail(printed)
    record = Record.read(path)
    record.seconds = round(time.monotonic() - began, 1)
    if code is None:
        record.status, record.reason = CUT_OFF, f"its {seconds:.0f} s were over; what it had by then stands below"
    elif record.status == CUT_OFF:
        record.status, record.reason = FAILED, f"its process ended with {code}"
    if record.status not in (DONE, NOT_RUN):
        record.output = tail
    record.write()
    return record


def _wait(command: list[str], environment: dict[str, str], printed: IO[bytes], seconds: float) -> int | None:
    """Return a process's exit status; None where its time was over. All that it started ends with it."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # it left nothing behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(printed: IO[bytes]) -> str:
    printed.seek(0, os.SEEK_END)
    printed.seek(max(0, printed.tell() - _TAIL))
    return printed.read().decode(errors="replace")
