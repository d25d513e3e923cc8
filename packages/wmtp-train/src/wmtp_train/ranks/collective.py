"""What fails on one rank fails on all of them, in one line: no rank is left waiting for one that has given up."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from wmtp_core import UserError

Result = TypeVar("Result")


def run_on_all_ranks(
    work: Callable[[], Result], what: str, remedy: str = "make room or mend the folder, then --resume"
) -> Result:
    """Do `work` on every rank, and go on only if it worked on all of them. Every rank must call it.

    Args:
        work: must not meet other ranks: one that fails would leave them waiting.
        what: begins the line where the operating system refuses something, like `checkpoint X cannot be saved`.
        remedy: ends it.

    Raises:
        UserError: on rank 0 what the first rank that failed has to say; the others end with exit code 2, without a
            word of their own.
    """
    result, failure = None, None
    try:
        result = work()
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = f"{what}: {describe(error)}; {remedy}"
    failures = all_gather_object(failure)
    for rank, found in enumerate(failures):
        if found is not None and dist.get_rank() == 0:
            raise UserError(f"rank {rank}: {found}" if rank else found)
        if found is not None:
            sys.exit(2)
    return result  # type: ignore[return-value]  # None only where `work` returned it


def run_on_rank0(work: Callable[[], None], what: str) -> None:
    """Do `work` on rank 0 alone, with `together`'s care for the others. Every rank must call it."""
    run_on_all_ranks(work if dist.get_rank() == 0 else lambda: None, what)


def run_on_rank0_and_broadcast(
    work: Callable[[], Result], what: str, remedy: str = "mend that, and start again"
) -> Result:
    """What `work` gives rank 0, on every rank, with `together`'s care for the others. Every rank must call it."""
    result: Result = broadcast_object(run_on_all_ranks(work if dist.get_rank() == 0 else lambda: None, what, remedy))
    return result


def all_gather_object(mine: Any) -> list[Any]:
    """What every rank holds, in rank order, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def describe(error: OSError) -> str:
    """The operating system's words, with the file that they are about."""
    words = (error.strerror or str(error)).lower()
    return f"{error.filename}: {words}" if error.filename else words
