"""The batch script's decisions, with an srun and a scontrol that only say what they were asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/slurm/train.sbatch"
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun.arguments
trap 'echo USR1 >> srun.signals; exit "$AFTER_SIGNAL"' USR1
touch srun.started
[ "$CODE" = wait ] || exit "$CODE"
while :; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
echo "$*" >> scontrol.arguments
"""


@pytest.fixture
def batch(tmp_path):
    """Runs the script with arguments, where srun ends with a code, or waits for signals; its exit code."""
    for name, body in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)

    def run(*arguments, code="wait", after_signal=75, signals=(), **variables):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "3",
            "CODE": str(code),
            "AFTER_SIGNAL": str(after_signal),
            **variables,
        }
        process = subprocess.Popen(["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment)
        if signals:
            while not (tmp_path / "srun.started").exists():
                assert process.poll() is None
                time.sleep(0.01)
        for number in signals:
            process.send_signal(number)
        return process.wait(60)

    return run


def requeued(folder):
    path = folder / "scontrol.arguments"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2, 137, 143])
def test_an_end_of_its_own_is_the_jobs_end(batch, tmp_path, code):
    assert batch(code=code) == code
    assert requeued(tmp_path) == []


def test_75_goes_back_to_the_queue(batch, tmp_path):
    assert batch(code=75) == 0
    assert requeued(tmp_path) == ["requeue 7"]


@pytest.mark.parametrize("after_signal", [75, 138])
def test_a_warning_is_passed_on_and_the_job_requeued(batch, tmp_path, after_signal):
    assert batch(signals=[signal.SIGUSR1], after_signal=after_signal) == 0
    assert (tmp_path / "srun.signals").read_text() == "USR1\n"
    assert requeued(tmp_path) == ["requeue 7"]


def test_a_run_that_is_done_when_the_warning_comes_is_done(batch, tmp_path):
    assert batch(signals=[signal.SIGUSR1], after_signal=0) == 0
    assert requeued(tmp_path) == []


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]])
def test_a_cancelled_job_saves_and_stays_cancelled(batch, tmp_path, signals):
    assert batch(signals=signals) == 75
    assert "USR1\n" in (tmp_path / "srun.signals").read_text()
    assert requeued(tmp_path) == []


@pytest.mark.parametrize(("attempt", "end"), [(99, 0), (100, 75)])
def test_requeues_are_bounded(batch, tmp_path, attempt, end):
    assert batch(code=75, SLURM_RESTART_COUNT=str(attempt)) == end
    assert requeued(tmp_path) == (["requeue 7"] if end == 0 else [])


def test_every_attempt_has_logs_of_its_own_and_resumes(batch, tmp_path):
    batch("--algo", "critic-wmtp", "a b", code=0, SLURM_RESTART_COUNT="2")
    arguments = (tmp_path / "srun.arguments").read_text().splitlines()
    assert "--output=runs/slurm/7/attempt2.rank%t.%N.log" in arguments
    assert "--cpus-per-task=3" in arguments
    assert arguments[-6:] == [".venv/bin/python", "launch/train.py", "--resume", "--algo", "critic-wmtp", "a b"]
    assert (tmp_path / "runs/slurm/7").is_dir()


def test_a_job_of_an_array_knows_its_index_and_requeues_itself_alone(batch, tmp_path):
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    batch("--seed", "%a", "--output_dir", "runs/seed-%a", code=75, **array)
    assert (tmp_path / "srun.arguments").read_text().splitlines()[-4:] == ["--seed", "3", "--output_dir", "runs/seed-3"]
    assert requeued(tmp_path) == ["requeue 7_3"]
    assert (tmp_path / "runs/slurm/7_3").is_dir()
