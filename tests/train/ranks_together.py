"""Ranks that fail at work that they do together; a job for `ranks.on_ranks`."""

import errno
import os

from wmtp_core import UserError
from wmtp_train.ranks.collective import run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.mesh import Mesh

FAILURES = {  # ranks that fail → what rank 0 says
    (0,): "it fails: file 0: no space left on device; fix it",
    (1,): "rank 1: it fails: file 1: no space left on device; fix it",
    (0, 1): "it fails: file 0: no space left on device; fix it",
}


def fail(mesh: Mesh, failing: tuple[int, ...]) -> None:
    def work() -> None:
        if mesh.rank in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"file {mesh.rank}")

    def refuse() -> None:
        raise UserError("rank 0 is not reached when all is well")

    run_on_all_ranks(mesh, work, "it fails", "fix it")
    run_on_rank0(mesh, refuse, "")
