"""The processes of a run: how they start, agree and end."""

import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import transformers

from wmtp_core import UserError

Result = TypeVar("Result")

# Rank 0 may prepare a large corpus while the others wait for it.
_TIMEOUT = timedelta(hours=2)


def start_processes() -> None:
    """Join the process group that the launcher laid out in the environment; without a launcher, be a group of one."""
    if dist.is_initialized():
        return
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
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
    deepspeed.init_distributed(timeout=_TIMEOUT, verbose=False)


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def world_group() -> dist.ProcessGroup | None:
    """The group of all data-parallel ranks; None for one process, where nothing has to be agreed on."""
    return dist.group.WORLD if dist.get_world_size() > 1 else None


def first_rank_first(work: Callable[[], Result]) -> Result:
    """Do the same work on every rank, rank 0 first: it fills a cache that the others then find.

    Raises:
        UserError: on rank 0 what the work raised there; the other ranks end with it, without a word of their own.
    """
    result, failure = None, None
    if dist.get_rank() == 0:
        try:
            result = work()
        except UserError as error:
            failure = error
    failed = [failure is not None]
    dist.broadcast_object_list(failed)
    if failure is not None:
        raise failure
    if failed[0]:
        sys.exit(2)
    return work() if result is None else result


def seed_everything(seed: int) -> None:
    """The same initial weights on every rank."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run(main: Callable[[], None]) -> None:
    """Run a launch script: a `UserError` becomes one line and exit code 2, and the process group always ends."""
    try:
        main()
        if dist.is_initialized():
            # Without the barrier a rank that is done can tear the store down under the others.
            dist.barrier()
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        if dist.is_initialized() and dist.get_world_size() > 1:
            os._exit(2)  # at once: peers may wait in a collective that will never come, and so would an orderly end
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
