"""What a start takes of main memory; also a job for `ranks.on_ranks`."""

import ctypes
import gc
import threading
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import deepspeed

from wmtp_train.algorithms import trainer_class
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.run import Run

_MMAP_THRESHOLD = -3  # in malloc.h
STATUS = Path("/proc/self/status")


class Placed(Exception):
    """Parameters are where DeepSpeed wants them."""


class Watch(threading.Thread):
    """Looks every millisecond at the memory of this process that no file backs and nobody can take from it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples, self.done = [], threading.Event()

    def run(self):
        while not self.done.wait(0.001):
            self.samples.append((time.monotonic(), anonymous()))


def anonymous():
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def measure_start(mesh, warm_up, settings):
    """Return when this rank held how many bytes beyond what it began with, until its parameters were placed.

    The libraries and buffers of a first start do not count. Nor does the file that weights are read from, which lies in
    the page cache once for all processes and is dropped when memory is short.
    """
    # Large blocks go back to the system when they are freed: what the allocator keeps for later is no peak of ours.
    assert ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16) == 1
    start(mesh, warm_up)
    gc.collect()
    before, watch = anonymous(), Watch()
    watch.start()
    run = start(mesh, settings)
    watch.done.set()
    watch.join()
    parameters = list(run.policy.parameters())
    return {
        "samples": [(moment, held - before) for moment, held in watch.samples],
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "held": sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in parameters),
        "dtypes": {p.dtype for p in parameters},
    }


def start(mesh, settings):
    """Open a run and place its parameters, and go no further."""

    def stop(*args, **kwargs):
        raise Placed

    run = Run.open(settings, trainer_class(settings.algo).algorithm, mesh)
    with patch.object(deepspeed, "initialize", stop), suppress(Placed):
        ZeroEngine(run.policy, run.engine_config, settings.optimizer, 1, mesh)
    return run
