import os
import signal
import subprocess
import sys
import time

import pytest

from wmtp_train.ranks.preemption import (
    Interrupted,
    catch_stop_signals,
    ignore_stop_signals_unless_parent,
    pending_signal,
    raise_if_preempted,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_is_noted_and_ends_nothing(number):
    before = signal.getsignal(number)
    with catch_stop_signals():
        assert pending_signal() == 0
        os.kill(os.getpid(), number)
        assert pending_signal() == number
    assert pending_signal() == 0
    assert signal.getsignal(number) is before


def test_the_first_signal_is_the_one_that_counts():
    with catch_stop_signals():
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert pending_signal() == signal.SIGUSR1


def test_a_run_stops_where_it_is_asked_to_and_not_before(processes):
    with catch_stop_signals():
        raise_if_preempted(processes)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Interrupted, match="stopped by SIGUSR1"):
            raise_if_preempted(processes)


def forked(begin):
    """A child that has begun, and then waits for signals."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        begin()
        os.write(tell, b"!")
        while True:
            time.sleep(1)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    return child


def ended(child, seconds=20):
    """How a child ended within so many seconds; None if it has not, and then it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.parametrize("scene", ["helper_ends_by_the_signal", "reader_heeds_its_parent_alone"])
def test_forked(scene):
    """In a small process: Linux may refuse to fork the large one that runs all tests."""
    subprocess.run([sys.executable, __file__, scene], check=True, timeout=60)


def helper_ends_by_the_signal():
    with catch_stop_signals():
        child = forked(lambda: None)
        os.kill(child, signal.SIGTERM)
        assert ended(child) == -signal.SIGTERM
        assert pending_signal() == 0


def reader_heeds_its_parent_alone():
    child = forked(lambda: ignore_stop_signals_unless_parent(0))
    for name in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{name}", str(child)], check=True)
    time.sleep(0.2)  # to end in, if it were to
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 0


if __name__ == "__main__":
    globals()[sys.argv[1]]()
