"""Peak memory of an operation beyond what it is given."""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from wmtp_core import UserError

Prepare = Callable[[], Callable[[], Any]]
"""Makes the inputs and returns the operation on them. Another process must be able to import it."""
# What every process would otherwise import for itself, the benchmark's own main module included.
_IMPORTED_ONCE = [
    "transformers.models.llama.modeling_llama",
    "wmtp_train.engines.deepspeed.engine",
    "wmtp_train.run",
    "matplotlib.figure",
]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def why_not_measured(device: torch.device) -> str | None:
    """Return why the peak cannot be measured here; None where it can."""
    if device.type == "cuda" or _CLEAR.exists():
        return None
    return "peak memory on CPU is read from Linux's /proc, and there is none"


def peak_memory(warm_up: Prepare, prepare: Prepare, device: torch.device) -> int:
    """Return bytes that an operation holds at most beyond its inputs, its results included.

    On CPU a process of its own runs it, so that no freed block of another variant is reused unseen; `warm_up` is run
    there first, so that libraries and threads do not count.

    Raises:
        UserError: the system ended the process, for lack of memory most likely.
    """
    if device.type == "cuda":
        return _peak_on_cuda(prepare)
    # Not ru_maxrss: that starts at its parent's peak. A server that only imported things forks clean processes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    with ProcessPoolExecutor(1, mp_context=context) as fresh_process:
        try:
            return fresh_process.submit(_peak_here, warm_up, prepare, torch.get_num_threads()).result()
        except BrokenProcessPool as error:
            raise UserError(
                "measuring peak memory: the process was ended, probably for lack of memory; "
                "the naive forms need about 10 GB: free some, or run --quick"
            ) from error


def _peak_here(warm_up: Prepare, prepare: Prepare, threads: int) -> int:
    torch.set_num_threads(threads)
    warm_up()()
    operation = prepare()
    _CLEAR.write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    operation()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _peak_on_cuda(prepare: Prepare) -> int:
    prepare()()  # libraries keep workspaces from their first use on
    operation = prepare()
    gc.collect()  # now, and not while it is measured
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operation()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
