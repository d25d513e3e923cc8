"""launch/train.py with faults: `faulty_ranks.py ARGUMENTS`, or in forks of a process that has imported everything.

The environment's FAULTS is a JSON list of {fault, rank, step, during}: each strikes on that rank, at that step (counted
from 0) or during something else. TIMEOUT stands for DEEPSPEED_TIMEOUT, in seconds.
"""

import gc
import json
import math
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_train import run, trainer
from wmtp_train.ranks import lifecycle
from wmtp_train.ranks.preemption import pending_signal
from wmtp_train.step import MicroBatchLoss, Step

LAUNCH = Path(__file__).parents[2] / "launch"


def kill(loss: MicroBatchLoss) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(loss: MicroBatchLoss) -> None:
    time.sleep(3600)


def sigterm(*_: Any) -> None:
    """To the process and whatever helps it, from outside, as launchers do."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    subprocess.run(["kill", "-TERM", *(str(process.pid) for process in processes)], check=True)


def sigterm_to_launcher(*_: Any) -> None:
    os.kill(os.getppid(), signal.SIGTERM)
    while not pending_signal():  # until it is handed on
        time.sleep(0.01)


def sigusr1(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def nan(loss: MicroBatchLoss) -> MicroBatchLoss:
    return replace(loss, total=loss.total * math.nan, ce=loss.ce * math.nan)


def out_of_memory(loss: MicroBatchLoss) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def nan_gradient(loss: MicroBatchLoss) -> None:
    loss.total.register_hook(lambda gradient: gradient * math.nan)


def lose_cache(loss: MicroBatchLoss) -> None:
    shutil.rmtree(os.environ["CACHE"])


def truncate_cache(loss: MicroBatchLoss) -> None:
    for path in Path(os.environ["CACHE"]).glob("*/rows.arrow"):
        os.truncate(path, 4096)


def before(function: Callable[..., Any], fault: Callable[..., None]) -> Callable[..., Any]:
    def faulty(*args: Any, **kwargs: Any) -> Any:
        fault()
        return function(*args, **kwargs)

    return faulty


def arrange(fault: str, step: int = -1, during: str = "") -> None:
    """Have the fault strike in the middle of a step, or `during` "preparation", "evaluation" or "saving"."""
    strike = globals()[fault]
    if during == "preparation":
        trainer.ZeroEngine = before(trainer.ZeroEngine, strike)
    if during == "evaluation":
        run.evaluate = before(run.evaluate, strike)
    if during == "saving":
        save = DeepSpeedEngine.save_checkpoint
        DeepSpeedEngine.save_checkpoint = lambda *args, **kwargs: (save(*args, **kwargs), strike())[0]
    compute = Step.loss

    def loss(self: Step, micro_batch: Any, normalizers: Any) -> MicroBatchLoss:
        found = compute(self, micro_batch, normalizers)
        return (strike(found) or found) if micro_batch.inputs.step == step else found

    Step.loss = loss


def main() -> None:
    for fault in json.loads(os.environ["FAULTS"]):
        if fault.pop("rank") == int(os.environ["RANK"]):
            arrange(**fault)
    if "TIMEOUT" in os.environ:
        lifecycle.STEP_TIMEOUT = timedelta(seconds=float(os.environ["TIMEOUT"]))
    sys.path.insert(0, str(LAUNCH))
    sys.argv[0] = str(LAUNCH / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


def train(arguments: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
    """One rank, in a process of its own, in `folder`; what it says goes to `log`."""
    gc.freeze()  # as in `ranks`
    os.environ |= environment
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a launcher started
    sys.argv = ["train.py", *arguments]
    torch.set_num_threads(1)
    main()


if __name__ == "__main__":
    main()
