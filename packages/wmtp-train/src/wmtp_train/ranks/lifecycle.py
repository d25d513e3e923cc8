"""How the processes of a run start and end."""

import os
import random
import re
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
import transformers

from wmtp_core import UserError
from wmtp_train.engines.deepspeed.start import STEP_TIMEOUT, init_process_group
from wmtp_train.out_of_memory import in_short, is_out_of_memory
from wmtp_train.progress import print_lines_off_terminal
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.ranks.preemption import REQUEUE, Interrupted
from wmtp_train.ranks.slurm import srun_variables

# Rank 0 may prepare a large corpus while the others wait for it.
_PREPARATION = timedelta(hours=2)

# What a peer's end looks like. Gloo has no exception class of its own; torch hands on its words, and NCCL's.
_LOST_CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "imed out", "ncclRemoteError")


def start_processes() -> Mesh:
    """Join the process group that the launcher laid out in the environment; without a launcher, be a group of one.

    Every rank must call it, and equally often: each call makes a control group.

    Returns:
        The mesh of this process.
    """
    transformers.utils.logging.disable_progress_bar()
    print_lines_off_terminal()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            os.environ.update(srun_variables(os.environ))
        if "RANK" not in os.environ:
            os.environ.update(_alone())
        if torch.cuda.is_available():
            torch.cuda.set_device(_device())  # before the first collective, which would have to guess
        init_process_group()
    world, everyone = dist.get_world_size(), dist.group.WORLD
    assert everyone is not None
    control = everyone if world == 1 else dist.new_group(backend="gloo", timeout=_PREPARATION)
    everyone.set_timeout(_PREPARATION)
    return Mesh(dist.get_rank(), world, _device(), everyone, everyone, control)


def _alone() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in alone.items()}


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def set_step_timeout(mesh: Mesh, engine_group: dist.ProcessGroup) -> None:
    """Expect steps from here on: a rank that does not answer within `STEP_TIMEOUT` ends the run.

    Preparing data may take 2 hours before.

    Args:
        mesh: the processes.
        engine_group: in which the engine's collectives run, a group of its own.
    """
    for group in (mesh.everyone, mesh.data_parallel, mesh.sequence.group or mesh.everyone, mesh.control, engine_group):
        group.set_timeout(STEP_TIMEOUT)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, alike on every rank."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run(main: Callable[[], None], then: str = "--resume goes on from the newest checkpoint") -> None:
    """Run a launch script and end its process, the process group in any case.

    One line on stderr says why, with exit code 2 for a `UserError`, 75 (`REQUEUE`) for `Interrupted`, and 1 where
    another process has ended or hangs. A bug in WMTP keeps its traceback.

    Args:
        main: the script.
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
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            _say(f"error (rank {_rank()}): {in_short(error)}: take a smaller batch or model, or more processes")
            _end(2)
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


def _has_lost_contact(error: BaseException) -> bool:
    network = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
    return network or any(words in str(error) for words in _LOST_CONTACT)
