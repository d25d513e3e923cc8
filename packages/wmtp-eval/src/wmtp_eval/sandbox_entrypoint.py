"""The script inside the sandbox: locks itself in, and then executes the program that it reads from its input.

`python -I -S` runs it as a script, so it imports the standard library alone. The first line of its input is a nonce,
the user to become (0: stay) and megabytes; the rest is the program. It answers with the nonce and the outcome.
"""

import ctypes
import os
import resource
import struct
import sys

_SYSTEM = ("/usr", "/lib", "/lib64", sys.base_prefix)
_LIBC = ctypes.CDLL(None, use_errno=True)
# linux/mount.h, fcntl.h, prctl.h and capability.h
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 2, 4, 4096, 16384
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NOSUID, _NODEV = 1, 2, 4
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    """Lock in, execute, answer."""
    head, _, program = sys.stdin.buffer.read().partition(b"\n")
    nonce, user, megabytes = head.decode().split()
    answers, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    shut_file_system(os.getcwd())
    if guarded := os.fork():
        # The first process of the namespace, which takes all others with it when it is killed. It does not become
        # another user: with that, Linux would forget that it is to be killed with its parent.
        os.waitpid(guarded, 0)
        os._exit(0)
    drop_privileges(int(user))
    set_limits(int(megabytes))
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        exec(compile(program, "<program>", "exec"), {})
        outcome = "passed"
    except BaseException as error:  # SystemExit too: a program has to reach its end
        outcome = f"{type(error).__name__}: {error}"[:200]
    os.write(answers, f"{nonce} {outcome}".encode(errors="replace"))
    os._exit(0)


def shut_file_system(root: str) -> None:
    """Make `root` the root: the system's folders in it, all read-only, and a small `/work` in memory to work in."""
    mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,mode=755")
    os.mkdir(f"{root}/work")
    for folder in _SYSTEM:
        if os.path.isdir(folder) and not os.path.isdir(root + folder):
            os.makedirs(root + folder)
            mount(folder, root + folder, "", _MS_BIND | _MS_REC, "")
    attributes = struct.pack("QQQQ", _READ_ONLY | _NOSUID | _NODEV, 0, 0, 0)
    check(_LIBC.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, root.encode(), _AT_RECURSIVE, attributes, len(attributes)))
    mount("tmpfs", f"{root}/work", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=1777")
    os.chroot(root)
    os.chdir("/work")


def drop_privileges(user: int) -> None:
    """Become `user`, or stay the same if it is 0; without any capability, and without a way to gain one."""
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # beyond the last that this Linux knows
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(_LIBC.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))


def set_limits(megabytes: int) -> None:
    """Bound memory, file sizes and open files; no process or thread may be started, and no core is dumped."""
    for limit, most in (
        (resource.RLIMIT_AS, megabytes * 2**20),
        (resource.RLIMIT_FSIZE, 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Call mount(2)."""
    check(_LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def check(result: int) -> None:
    """Raise what the operating system refused."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
