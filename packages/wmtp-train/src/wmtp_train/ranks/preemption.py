"""SIGTERM and SIGUSR1 (Slurm's warning) ask a run to stop: noted when they come, obeyed where all ranks can agree."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from wmtp_train.ranks.mesh import Mesh

REQUEUE = os.EX_TEMPFAIL
"""Exit code 75, "try again later": the run is kept, and the same command with --resume goes on."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_noted: list[signal.Signals] = []


class Interrupted(Exception):
    """Every rank stops here because a signal asked for it. The message says what is kept and how to go on."""


@contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Note the stop signals of this process instead of ending by them; a second one changes nothing."""
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _noted.append(signal.Signals(number))
        else:  # a forked helper, such as one that tokenises: its pool ends it by SIGTERM and waits for that
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted.clear()


def pending_signal() -> int:
    """Return the number of the first stop signal that this process was sent; 0 for none."""
    return _noted[0] if _noted else 0


def raise_if_preempted(mesh: Mesh) -> None:
    """Stop all ranks here if one of them was sent a stop signal. Every rank must call it; it waits for no accelerator.

    Raises:
        Interrupted: on every rank, naming the signal.
    """
    pending = torch.tensor(pending_signal())
    if mesh.world > 1:
        dist.all_reduce(pending, op=dist.ReduceOp.MAX, group=mesh.control)
    if number := int(pending):
        raise Interrupted(f"stopped by {signal.Signals(number).name}")


def ignore_stop_signals_unless_parent(worker: int) -> None:
    """Let only the parent end a process that reads batches ahead, so that a signal to the whole job breaks no step.

    Args:
        worker: its number, which `DataLoader` gives to a `worker_init_fn`.
    """

    def wait() -> None:
        while signal.sigwaitinfo(_STOP_SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # in every thread from here on
    threading.Thread(target=wait, daemon=True).start()
