import errno
import fcntl
import os
import socket

import pytest
from jobs import hold

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_train.checkpoint import run_lock


def test_a_folder_is_made_held_and_let_go_without_a_trace(processes, tmp_path):
    folder = tmp_path / "new" / "run"
    with run_lock(folder, processes):
        assert folder.is_dir()
    assert list(folder.iterdir()) == []
    with run_lock(folder, processes):
        pass


def test_a_second_run_is_refused_by_the_name_of_the_first(processes, tmp_path):
    with run_lock(tmp_path, processes):
        with pytest.raises(UserError) as error, run_lock(tmp_path, processes):
            pass
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        assert str(error.value).startswith(f"output_dir {tmp_path} is in use by {holder}; ")
        with pytest.raises(UserError), run_lock(tmp_path, processes):  # the refusal has not taken the lock away
            pass


def test_a_lock_on_a_file_that_the_last_run_has_just_removed_is_no_lock(processes, tmp_path, monkeypatch):
    flock = fcntl.flock

    def too_late(file, operation):
        monkeypatch.undo()
        (tmp_path / ".lock").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with run_lock(tmp_path, processes), pytest.raises(UserError), run_lock(tmp_path, processes):
        pass


def test_without_locks_the_run_goes_on_with_a_warning(processes, tmp_path, monkeypatch, capfd):
    def none_here(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none_here)
    with run_lock(tmp_path, processes):
        pass
    assert capfd.readouterr().err.startswith(f"warning: the file system of {tmp_path} has no locks; ")


def test_a_folder_that_cannot_be_written_to_is_one_line(processes, tmp_path, small_disk):
    small_disk(tmp_path / "disk", "ro")
    refusal = r"output_dir .*/run cannot be written to: .*read-only file system; fix it"
    with pytest.raises(UserError, match=refusal), run_lock(tmp_path / "disk" / "run", processes):
        pass


def test_an_error_lets_go(processes, tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path, processes):
        raise ZeroDivisionError
    with run_lock(tmp_path, processes):
        pass


@pytest.mark.slow
def test_a_second_run_of_two_ranks_ends_on_both_and_a_killed_one_frees_the_folder(processes, tmp_path):
    with run_lock(tmp_path / "run", processes):
        line, code = on_ranks(tmp_path, 2, hold, tmp_path / "run")
        assert "is in use by process" in line
        assert code == 2
    assert on_ranks(tmp_path, 2, hold, tmp_path / "run", True, exits=[-9, -9]) == []
    assert (tmp_path / "run" / ".lock").is_file()
    assert on_ranks(tmp_path, 2, hold, tmp_path / "run") == ["held", "held"]
