"""A script in a fork of a process that has imported everything, as if python had been called with it."""

import gc
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch

from ranks import FORKS, start_server


class ForkedScript:
    """A running script, with what is used here of `subprocess.Popen`.

    Args:
        script: its path.
        arguments: of its command line.
        environment: all of it.
        folder: where it runs.
        out: where its stdout goes.
        error: where its stderr goes.
    """

    def __init__(
        self, script: Path, arguments: list[str], environment: dict[str, str], folder: Path, out: Path, error: Path
    ) -> None:
        start_server()
        self._process = FORKS.Process(target=_become, args=(script, arguments, environment, folder, out, error))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()


def _become(
    script: Path, arguments: list[str], environment: dict[str, str], folder: Path, out: Path, error: Path
) -> None:
    gc.freeze()  # as in `ranks`
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, out), (2, error)):
        with path.open("a") as file:
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
