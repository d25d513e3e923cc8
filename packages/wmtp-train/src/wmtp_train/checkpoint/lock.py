"""One run to a folder: rank 0 holds a lock that the kernel frees with the process, however it ends."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from wmtp_core import UserError
from wmtp_train.ranks.collective import run_on_all_ranks
from wmtp_train.ranks.mesh import Mesh

_NAME = ".lock"


@contextmanager
def run_lock(folder: Path, mesh: Mesh) -> Iterator[None]:
    """Make `folder` where it is missing and hold it. Every rank must enter.

    Raises:
        UserError: another run holds it, or it cannot be written to.
    """
    file = run_on_all_ranks(
        mesh,
        lambda: _acquire(folder) if mesh.is_first else None,
        f"output_dir {folder} cannot be written to",
        "fix it, or choose another output_dir",
    )
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # a folder that has become read-only
                (folder / _NAME).unlink()
            file.close()


def _acquire(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"output_dir {folder} is in use by {holder}; wait for it, stop it, or choose another output_dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(f"warning: the file system of {folder} has no locks; start no second run there", file=sys.stderr)
            return file
        if _is_current(file, path):
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
            return file
        file.close()  # the run that held it has just ended and removed it


def _is_current(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
