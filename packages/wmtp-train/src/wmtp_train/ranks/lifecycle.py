"""The processes of a run: how they start, agree and end."""

import logging
import os
import random
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import transformers
from deepspeed.constants import default_pg_timeout

from wmtp_core import UserError
from wmtp_train.ranks.collective import run_on_all_ranks
from wmtp_train.ranks.preemption import REQUEUE, Interrupted, pending_signal
from wmtp_train.ranks.slurm import srun_variables

Result = TypeVar("Result")

# Rank 0 may prepare a large corpus while the others wait for it.
_PREPARATION = timedelta(hours=2)

# What a peer's end looks like. Gloo has no exception class of its own; torch hands on its words, and NCCL's.
_LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "imed out", "ncclRemoteError")

# The stop signals are agreed on over the CPU, so that no step waits for the accelerator.
_stop_group: dist.ProcessGroup | None = None


def start_processes() -> None:
    """Join the process group that the launcher laid out in the environment; without a launcher, be a group of one."""
    if dist.is_initialized():
        return
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if "RANK" not in os.environ:
        os.environ.update(srun_variables(os.environ))
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    if not torch.cuda.is_available():
        # Otherwise DeepSpeed compiles a C++ collective that training does not use, and a kill meanwhile leaves a lock.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(device())  # before the first collective, which would have to guess
    deepspeed.init_distributed(verbose=False)
    if world := world_group():
        global _stop_group
        _stop_group = dist.new_group(backend="gloo", timeout=default_pg_timeout)
        world.set_timeout(_PREPARATION)


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def world_group() -> dist.ProcessGroup | None:
    """The group of all data-parallel ranks; None for one process, where nothing has to be agreed on."""
    return dist.group.WORLD if dist.get_world_size() > 1 else None


def rank0_first(work: Callable[[], Result], what: str) -> Result:
    """Do the same work on every rank, rank 0 first: it fills a cache that the others then find.

    Args:
        work, what: as of `together`, which tells of every rank's failure in the same way.
    """
    remedy = "mend that, and start again"
    first = dist.get_rank() == 0
    filled = run_on_all_ranks(lambda: work() if first else None, what, remedy)
    found = run_on_all_ranks(lambda: None if first else work(), what, remedy)
    return filled if first else found  # type: ignore[return-value]  # what `work` gave here


def fail_on_all_ranks(message: str) -> NoReturn:
    """End every rank for something that all of them know: rank 0 says it, and the others stay silent.

    Raises:
        UserError: on rank 0; the others end with the same exit code 2.
    """
    if dist.get_rank() == 0:
        raise UserError(message)
    sys.exit(2)


def set_step_timeout(engine_group: dist.ProcessGroup) -> None:
    """From here on the ranks work in step: one that does not answer within DeepSpeed's timeout ends the run.

    That is 10 minutes, or as many as `DEEPSPEED_TIMEOUT` says; preparing data may take 2 hours before.

    Args:
        engine_group: in which the engine's collectives run, a group of its own.
    """
    if world := world_group():
        for group in (world, engine_group):
            group.set_timeout(default_pg_timeout)


def raise_if_preempted() -> None:
    """Stop all ranks here if one of them was sent a stop signal. Every rank must call it; it waits for no accelerator.

    Raises:
        Interrupted: on every rank, naming the signal.
    """
    noted = torch.tensor(pending_signal())
    if dist.get_world_size() > 1:
        assert _stop_group is not None, "start_processes makes it"
        dist.all_reduce(noted, op=dist.ReduceOp.MAX, group=_stop_group)
    if number := int(noted):
        raise Interrupted(f"stopped by {signal.Signals(number).name}")


def seed_everything(seed: int) -> None:
    """The same initial weights on every rank."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run(main: Callable[[], None], then: str = "--resume goes on from the newest checkpoint") -> None:
    """Run a launch script and end its process, the process group in any case.

    One line on stderr says why, with exit code 2 for a `UserError`, 75 (`REQUEUE`) for `Interrupted`, and 1 where
    another process has ended or hangs. An error of ours keeps its traceback.

    Args:
        then: how to go on after another process has ended.
    """
    code = 0
    try:
        try:
            main()
        except Interrupted as stop:
            code = REQUEUE
            if _rank() == 0:
                _say(str(stop))
        if dist.is_initialized():
            # Without the barrier a rank that is done can tear the store down under the others.
            dist.barrier()
    except UserError as error:
        rank = _rank()
        _say(f"error{f' (rank {rank})' if rank else ''}: {error}")
        _end(2)
    except RuntimeError as error:
        if not _has_lost_contact(error):
            raise
        cause = re.split(r"\. |\n", str(error))[0]
        _say(f"error (rank {_rank()}): lost contact with another process, whose own words tell more; {then} ({cause})")
        _end(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if code:
        sys.exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))  # under srun `start_processes` sets it; before that there is no telling


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(code: int) -> NoReturn:
    if dist.is_initialized() and dist.get_world_size() > 1:
        os._exit(code)  # at once: peers may wait in a collective that will never come, and so would an orderly end
    sys.exit(code)


def _has_lost_contact(error: RuntimeError) -> bool:
    network = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
    return network or any(words in str(error) for words in _LOST_CONTACT)
