import os
from pathlib import Path

import pytest

from wmtp_core import UserError
from wmtp_lab.experiment.processes import Job, run_job, run_jobs, threads_of


def job(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name, ["-c", code], tmp_path / f"{name}.log")


def test_jobs_stand_side_by_side(tmp_path: Path) -> None:
    # Each waits for the other's file, so neither can end before the other has begun.
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = [job(tmp_path, mine.name, _meet(mine, its)) for mine, its in ((first, second), (second, first))]
    assert {done.name for done in run_jobs(jobs, processes=2)} == {"first", "second"}


def _meet(mine: Path, its: Path) -> str:
    """Code that writes its process id into one file, and waits for the other."""
    return (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(mine)!r}).write_text(str(os.getpid()))\n"
        f"while not pathlib.Path({str(its)!r}).exists(): time.sleep(.01)\n"
    )


def test_one_at_a_time_goes_in_order(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, f"print({name!r})") for name in "abc"]
    assert [done.name for done in run_jobs(jobs)] == ["a", "b", "c"]
    assert (tmp_path / "b.log").read_text() == "b\n"


def test_a_failure_is_told_with_its_last_words_and_ends_the_others(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    slow = _meet(begun, tmp_path / "never")
    bad = (
        _meet(tmp_path / "bad", begun)
        + "import sys\nprint('first'); print('error: no room', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(UserError, match=r"bad ended with exit code 3 .*error: no room"):
        list(run_jobs([job(tmp_path, "slow", slow), job(tmp_path, "bad", bad)], processes=2))
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_a_job_is_alone_and_has_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("KEPT", "yes")
    shown = "'RANK' in os.environ, os.environ['KEPT'], os.environ['OMP_NUM_THREADS'], os.getpgid(0) == os.getpid()"
    run_job(job(tmp_path, "look", f"import os; print({shown})"))
    # In a group of its own, where Ctrl-C does not reach it: it is ended by SIGTERM, and saves.
    assert (tmp_path / "look.log").read_text().split() == ["False", "yes", str(threads_of(1)), "True"]
    assert threads_of(10**6) == 1
