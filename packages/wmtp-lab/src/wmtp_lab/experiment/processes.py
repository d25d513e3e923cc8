"""The project's own scripts as processes, several side by side."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from wmtp_core import UserError

ROOT = Path(__file__).parents[5]  # of the checkout, whose launch scripts are run
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells a process of its group; one that is alone must not see it."""


class Job(NamedTuple):
    """A script with its arguments; what it prints goes to `log`."""

    name: str
    arguments: list[str]
    log: Path


def run_jobs(jobs: Iterable[Job], processes: int = 1) -> Iterator[Job]:
    """Run jobs, so many at a time; yields each as soon as it has ended well.

    Whatever ends this generator ends the processes that still run, by SIGTERM, at which training saves a checkpoint.

    Raises:
        UserError: a job failed.
    """
    waiting, free = deque(jobs), list(range(processes))
    running: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, slot = waiting.popleft(), free.pop(0)
                running[_start(job, slot, processes)] = job, slot
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                job, slot = running.pop(process)
                free.append(slot)
                if process.returncode:
                    words = job.log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                    raise UserError(f"{job.name} ended with exit code {process.returncode} ({job.log}): {words[-1]}")
                yield job
            if not ended:
                time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def run_job(job: Job) -> None:
    """Run one job to its end; raises UserError if it fails."""
    list(run_jobs([job]))


def threads_of(processes: int) -> int:
    """Return threads of each process on a CPU, so that they share the cores evenly."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def _start(job: Job, slot: int, processes: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(threads_of(processes))
    environment["PYTHONUNBUFFERED"] = "1"  # so that the last line of the log is the last word
    if devices := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % devices]
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *job.arguments],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for this process, which then ends that one by SIGTERM
        )
