"""The environments were recorded on Slurm 22.05, two nodes with two tasks each."""

import os

import pytest

from wmtp_core import UserError
from wmtp_train.ranks.slurm import srun_variables

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[1-2]"}
BATCH = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0"}
TASK = {
    **JOB,
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[1-2]",
}
# salloc's shell where LaunchParameters=use_interactive_step; and what `sbatch`, called in `srun --pty bash`, passes on.
INTERACTIVE = {
    **BATCH,
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NODELIST": "node1",
}
SUBMITTED_FROM_A_TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node9"}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts a command of that name first, which does what it is given."""

    def put(body: str) -> None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


def test_a_task_of_srun_has_its_place(scontrol):
    scontrol('[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"')
    assert srun_variables(TASK) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "10007",
    }


@pytest.mark.parametrize("environment", [{}, JOB, BATCH, INTERACTIVE, SUBMITTED_FROM_A_TASK])
def test_any_other_process_is_left_alone(environment):
    assert srun_variables(environment) == {}


def test_what_a_batch_script_sets_is_kept():
    found = srun_variables({**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5000"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "5000")


@pytest.mark.parametrize(("visible", "local_rank"), [("0,1", "1"), ("", "1"), ("5", "0")])
def test_a_task_that_sees_one_device_uses_that(visible, local_rank):
    assert srun_variables({**TASK, "MASTER_ADDR": "a", "CUDA_VISIBLE_DEVICES": visible})["LOCAL_RANK"] == local_rank


def test_jobs_and_steps_have_ports_of_their_own():
    def port(job, step):
        changes = {"MASTER_ADDR": "a", "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        return int(srun_variables({**TASK, **changes})["MASTER_PORT"])

    ports = [port(job, step) for job in range(29_990, 30_190) for step in range(4)]
    assert len(set(ports)) == len(ports)
    assert 10_000 <= min(ports) <= max(ports) < 30_000


@pytest.mark.parametrize("missing", [True, False])
def test_without_scontrol_the_way_out_is_said(scontrol, monkeypatch, tmp_path, missing):
    if missing:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        scontrol("exit 1")
    with pytest.raises(UserError, match=r"SLURM_STEP_NODELIST 'node\[1-2\]'.*set MASTER_ADDR in the batch script"):
        srun_variables(TASK)
