"""What fails on one rank fails on all of them, in one line: no rank is left waiting for one that has given up."""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from wmtp_core import UserError
from wmtp_train.ranks.mesh import Mesh

Result = TypeVar("Result")

START_AGAIN = "fix that, and start again"
MAKE_ROOM = "make room or fix the folder, then --resume"


def run_on_all_ranks(mesh: Mesh, work: Callable[[], Result], what: str, fix: str = MAKE_ROOM) -> Result:
    """Run `work` on every rank, and go on only if it worked on all of them. Every rank must call it.

    Args:
        mesh: the processes.
        work: must not meet other ranks: one that fails would leave them waiting.
        what: begins the line where the operating system refuses something, like `checkpoint X cannot be saved`.
        fix: ends it.

    Raises:
        UserError: on rank 0, with the message of the first rank that failed; the others exit with code 2 and without
            a message.
    """
    result, failure = None, None
    try:
        result = work()
    except UserError as error:
        failure = str(error)
    except OSError as error:
        failure = f"{what}: {describe(error)}; {fix}"
    for rank, found in enumerate(mesh.all_gather_object(failure)):
        if found is not None:
            fail_on_all_ranks(mesh, f"rank {rank}: {found}" if rank else found)
    return result  # type: ignore[return-value]  # None only where `work` returned it


def run_on_rank0(mesh: Mesh, work: Callable[[], None], what: str) -> None:
    """Run `work` on rank 0 alone, and fail on all ranks if it fails. Every rank must call it."""
    run_on_all_ranks(mesh, work if mesh.is_first else lambda: None, what)


def run_on_rank0_and_broadcast(mesh: Mesh, work: Callable[[], Result], what: str, fix: str = START_AGAIN) -> Result:
    """Run `work` on rank 0 alone and return its result on every rank. Every rank must call it."""
    result: Result = mesh.broadcast_object(run_on_all_ranks(mesh, work if mesh.is_first else lambda: None, what, fix))
    return result


def rank0_first(mesh: Mesh, work: Callable[[], Result], what: str) -> Result:
    """Run the same work on every rank, rank 0 first: it fills a cache that the others then find."""
    filled = run_on_all_ranks(mesh, lambda: work() if mesh.is_first else None, what, START_AGAIN)
    found = run_on_all_ranks(mesh, lambda: None if mesh.is_first else work(), what, START_AGAIN)
    return filled if mesh.is_first else found  # type: ignore[return-value]  # what `work` returned here


def fail_on_all_ranks(mesh: Mesh, message: str) -> NoReturn:
    """End every rank for a reason that all of them know.

    Raises:
        UserError: on rank 0; the others exit with the same code 2 and without a message.
    """
    if mesh.is_first:
        raise UserError(message)
    sys.exit(2)


def describe(error: OSError) -> str:
    """Return the operating system's words, with the file that they are about."""
    words = (error.strerror or str(error)).lower()
    return f"{error.filename}: {words}" if error.filename else words
