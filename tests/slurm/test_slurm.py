"""launch/slurm/train.sbatch, unmodified, on two nodes of a real Slurm: preempted, requeued, and the same in the end."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# What this machine is smaller in than the header's nodes.
SMALL = ("--ntasks-per-node=1", "--cpus-per-task=1", "--partition=low")
STEPS = 250
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_home, tiny_llama):
    """What the script expects where it is submitted: `.venv`, `launch`, and a configuration."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "deepspeed.json").write_text(json.dumps({"train_batch_size": 4, "zero_optimization": {"stage": 2}}))
    settings = {
        "algo": "rho1-wmtp",
        "steps": STEPS,
        "monitor": ["jsonl"],
        "deepspeed_config": "deepspeed.json",
        "data": {
            "train": [str(tiny_home / "train.jsonl")],
            "evaluate": {"held_out": [str(tiny_home / "held_out.jsonl")]},
            "tokenizer": str(tiny_home / "tokenizer"),
            "sequence_length": 32,
            "cache_dir": "cache",
        },
        "model": {"config": tiny_llama, "horizon": 3},
        "reference": {"source": str(tiny_home / "reference")},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def submit(cluster, workplace):
    """Submits the script for a run of this name; the job's id."""

    def submit(run):
        script, arguments = ROOT / "launch/slurm/train.sbatch", ("--config", "settings.yaml", "--output_dir", run)
        return cluster.run("sbatch", "--parsable", *SMALL, script, *arguments, cwd=workplace).strip()

    return submit


@pytest.fixture(scope="module")
def wait_until(cluster, workplace):
    """Waits until Slurm says this of a job, and fails with the job and its logs if that never comes."""

    def wait(job, **fields):
        def tell():
            logs = [*workplace.glob(f"slurm-{job}*"), *workplace.glob(f"runs/slurm/{job}/*")]
            return f"{cluster.job(job)}\n" + "\n".join(f"--- {log}\n{log.read_text()[-2000:]}" for log in logs)

        def reached():
            found = cluster.job(job)
            assert found["JobState"] not in FINAL - {fields["JobState"]}, tell()
            return fields.items() <= found.items()

        cluster.wait_for(reached, 240, tell)

    return wait


def test_a_task_of_srun_is_told_from_a_shell_in_the_same_allocation(cluster):
    probe = "import os, json; from wmtp_train.ranks.slurm import srun_variables as v; print(json.dumps(v(os.environ)))"
    shell = '"$0" -c "$1"; srun "$0" -c "$1"'
    allocation = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1")
    alone, *tasks = map(json.loads, cluster.run(*allocation, "sh", "-c", shell, sys.executable, probe).splitlines())
    assert alone == {}
    assert sorted(task["RANK"] for task in tasks) == ["0", "1"]
    assert {(task["LOCAL_RANK"], task["WORLD_SIZE"], task["MASTER_ADDR"]) for task in tasks} == {("0", "2", "node1")}
    assert len({task["MASTER_PORT"] for task in tasks}) == 1


def test_a_preempted_job_ends_with_the_weights_of_an_undisturbed_one(cluster, workplace, submit, wait_until):
    undisturbed = submit("undisturbed")
    wait_until(undisturbed, JobState="COMPLETED", Restarts="0")

    preempted = submit("preempted")
    logs = workplace / "runs/slurm" / preempted
    first_log, second_log = (logs / f"attempt{attempt}.rank0.node1.log" for attempt in (0, 1))
    figures = workplace / "preempted/metrics.jsonl"
    cluster.wait_for(
        lambda: figures.exists() and figures.stat().st_size > 0,
        120,
        lambda: (workplace / f"slurm-{preempted}.out").read_text(),
    )
    # It keeps the nodes for a moment: slurmd refuses a job that starts again in the second in which it was stopped.
    urgent = ("--partition=high", "--nodes=2", "--gpus-per-node=8", "--output=/dev/null", "--wrap=sleep 3")
    cluster.run("sbatch", *urgent)
    wait_until(preempted, JobState="PENDING", Restarts="1")
    cluster.run("scontrol", "update", f"jobid={preempted}", "StartTime=now")  # Slurm would hold it back for 2 minutes
    wait_until(preempted, JobState="COMPLETED", Restarts="1")

    written = sorted(path.name for path in logs.iterdir())
    assert written == [f"attempt{attempt}.rank{rank}.node{rank + 1}.log" for attempt in (0, 1) for rank in (0, 1)]
    assert "stopped by SIGUSR1" in first_log.read_text()
    assert re.search(rf"^going on after step [1-9]\d* of {STEPS}$", second_log.read_text(), re.MULTILINE)
    for run in ("undisturbed", "preempted"):
        newest = max((workplace / run / "checkpoints").glob("step_*"))
        assert newest.name.endswith(f"_{STEPS:08d}")
        assert json.loads((newest / "run.json").read_text())["world_size"] == 2
    weights = [(workplace / run / "model/model.safetensors").read_bytes() for run in ("undisturbed", "preempted")]
    assert weights[0] == weights[1]


def test_nothing_is_left_of_a_cluster(cluster, tmp_path):
    def machine():
        return os.listdir("/sys/class/net"), Path("/proc/self/mountinfo").read_text()

    def inhabitants():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ends while we look
                found += [process.name] if os.readlink(process / "ns/net") == network else []
        return found

    before = machine()
    another = type(cluster)(tmp_path / "log")
    network = os.readlink(f"/proc/{another.pid}/ns/net")
    assert len(inhabitants()) >= 4
    another.stop()
    cluster.wait_for(lambda: not inhabitants(), 10, inhabitants)
    assert machine() == before
