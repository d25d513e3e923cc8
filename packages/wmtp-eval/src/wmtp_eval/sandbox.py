"""Runs a program that a model wrote, where it can do no harm: in Linux namespaces with limits, or not at all."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from wmtp_core import UserError

PASSED, TIMED_OUT = "passed", "timed out"
_ENTRYPOINT = Path(__file__).with_name("sandbox_entrypoint.py")
_NOBODY = 65534
_LONGEST_ANSWER = 4096  # bytes: a program could flood what is read without a bound


@dataclass(frozen=True)
class Sandbox:
    """A place to run Python programs in, a new one for each.

    A program gets an interpreter of its own without an environment, in namespaces of its own: no network, no other
    process in sight, and of the file system only the interpreter and the system's libraries, read-only, and an empty
    working folder of 1 MB in memory. It has no privileges (root's programs run as nobody), and can start neither
    processes nor threads. Where Linux does not allow all of that, nothing runs. This keeps the machine from the
    program; it does not keep a program that means to cheat from claiming that it passed.

    Args:
        seconds: the longest that a program may take, the start of its interpreter included.
        megabytes: the most memory that it may map.
    """

    seconds: float
    megabytes: int

    def run(self, program: str) -> str:
        """Run a program to its end: `passed`, `timed out`, or what went wrong."""
        nonce = secrets.token_hex(16)  # what to say in the end; a program that ends itself before does not know it
        user = _NOBODY if os.geteuid() == 0 else 0  # 0 inside is this user outside
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as source:
            source.write(f"{nonce} {user} {self.megabytes}\n{program}".encode(errors="surrogatepass"))
            source.seek(0)
            process = subprocess.Popen(
                self._command(),
                cwd=folder,
                env={},
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with process:
                assert process.stdout is not None
                try:
                    answer = process.stdout.read(_LONGEST_ANSWER)
                    if len(answer) < _LONGEST_ANSWER:
                        process.wait()
                finally:
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
        said, _, outcome = answer.decode(errors="replace").partition(" ")
        if said == nonce:
            return outcome
        if process.returncode == -signal.SIGKILL and len(answer) < _LONGEST_ANSWER:
            return TIMED_OUT
        return f"ended early: {' '.join(answer.decode(errors='replace').split())[-200:]}"

    def require(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UserError: this machine does not allow the sandbox, or not within its limits.
        """
        try:
            outcome = self.run("import math")
        except FileNotFoundError as error:
            outcome = f"{error.filename}: not found"
        if outcome != PASSED:
            raise UserError(
                f"the sandbox for the model's programs cannot be built here, so none is run ({outcome}): use Linux "
                "5.12 or newer, as root or where unprivileged user namespaces are allowed"
            )

    def _command(self) -> list[str]:
        # `timeout` outlives us if we are killed. With it goes `unshare`, and with that the namespace and all in it.
        namespaces = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            namespaces += ["--user", "--map-root-user"]
        interpreter = [sys.executable, "-I", "-S", "-B", str(_ENTRYPOINT)]
        return ["timeout", "--signal=KILL", str(self.seconds), "unshare", *namespaces, "--", *interpreter]
