"""A throw-away Slurm cluster of two nodes on this machine, in namespaces of its own: `host.sh` is its first process."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_NAMESPACES = ("--net", "--uts", "--mount", "--ipc")


def why_not() -> str | None:
    """What keeps this machine from running the cluster; None if nothing does."""
    if os.geteuid() != 0:
        return "a cluster in namespaces needs root"
    needed = ("slurmctld", "slurmd", "srun", "munged", "unshare", "nsenter", "setpriv", "ip")
    if missing := [command for command in needed if shutil.which(command) is None]:
        return f"{', '.join(missing)} not installed; `make test-slurm` installs Slurm"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """Two idle nodes, until `stop` or the end of this process, however that comes; nothing is left of them."""

    def __init__(self, log: Path) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--pid", "--fork", "--kill-child"]
        # Little of this process's own: it may have joined a process group, or be a job of another Slurm.
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        self._environment = {**kept, "HF_HUB_OFFLINE": "1", "SLURM_CONF": str(HERE / "slurm.conf")}
        self._log = log
        with log.open("w") as output:
            self._hosts = subprocess.Popen(
                [*command, "--mount-proc", HERE / "host.sh"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )
        self.pid = self._hosts.pid
        try:
            self.wait_for(self._is_ready, 30, log.read_text)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: object, cwd: Path = HERE) -> str:
        """What a command prints on the first node."""
        numbering = f"--pid=/proc/{self.pid}/ns/pid_for_children"
        inside = ["nsenter", f"--target={self.pid}", *_NAMESPACES, numbering, f"--wd={cwd}"]
        done = subprocess.run(
            [*inside, *map(str, command)], env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows about a job, like `JobState` and `Restarts`."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def stop(self) -> None:
        """End every process of the cluster; what was mounted and linked ends with them."""
        self._hosts.kill()
        self._hosts.wait()

    @staticmethod
    def wait_for(condition: Callable[[], object], seconds: float, tell: Callable[[], object]) -> None:
        """Return once the condition holds; after so many seconds fail with what `tell` returns."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, tell()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        assert self._hosts.poll() is None, self._log.read_text()
        try:
            states = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
        except AssertionError:
            return False
        return states.split() == ["idle", "idle"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "log")
    yield cluster
    cluster.stop()
