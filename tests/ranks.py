"""Several ranks on this machine: ports, their environment, and jobs in forks of a process that has imported all."""

import gc
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wmtp_core import UserError
from wmtp_train.ranks.lifecycle import start_processes

FORKS = multiprocessing.get_context("forkserver")
"""Processes that begin where everything is imported, which takes most of the time of a small run.

A process has one such server, and whoever starts it decides what it imports; so `start_server` comes first.
"""
_PRELOADED = [
    "matplotlib.figure",
    "transformers.models.llama.modeling_llama",
    "wmtp_train.algorithms",
    "wmtp_train.ranks.consistency",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # of every engine above stage 0; imports torch's compiler
]


def start_server() -> None:
    """Start the server of `FORKS`, if it does not run yet."""
    FORKS.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What a launcher tells a process in its environment."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def on_ranks(folder: Path, world: int, job: Callable[..., Any], *arguments: Any, exits: Any = None) -> list[Any]:
    """What `job(mesh, *arguments)` returned on each of `world` ranks, or the text of the `UserError` that ended it.

    Args:
        folder: where results are left.
        job: a function of a module, with picklable arguments.
        exits: the exit codes of the ranks, by default 0; only ranks that end so have a result.
    """
    start_server()
    exits = exits or [0] * world
    (port,) = free_ports(1)
    files = [folder / f"result_{rank}.pt" for rank in range(world)]
    ranks = [
        FORKS.Process(target=_be_rank, args=(rank, world, port, file, job, arguments))
        for rank, file in enumerate(files)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.exitcode for rank in ranks] == exits
    return [torch.load(file, weights_only=False) for file, code in zip(files, exits, strict=True) if code == 0]


def _be_rank(rank: int, world: int, port: int, file: Path, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(rank_variables(rank, world, port))
    gc.freeze()  # DeepSpeed collects garbage again and again, and what was imported is none
    try:
        mesh = start_processes()
        try:
            result = job(mesh, *arguments)
        except UserError as error:
            result = str(error)
        except SystemExit as end:
            result = end.code
        torch.save(result, file)
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # no orderly end: a thread of gloo's may not outlive it
