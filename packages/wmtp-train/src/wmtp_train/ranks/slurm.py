"""A task of srun, in the variables that torch and DeepSpeed read; neither reads Slurm's own."""

import subprocess
from collections.abc import Mapping

from wmtp_core import UserError


def srun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task of srun; empty for any other process.

    Batch scripts and salloc's shells have no step. A step of one task is a process like any other: that is what
    `srun --pty bash` and interactive steps are, and what a batch script inherits that was submitted from one of those.

    Args:
        environment: a process's variables. MASTER_ADDR and MASTER_PORT are kept where they are set.

    Raises:
        UserError: the step's first host cannot be told.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    one_device_a_task = visible != "" and "," not in visible  # `--gpus-per-task=1` hides a node's other devices
    # Jobs and steps on one node do not meet, and the port stays below those that Linux hands out by itself.
    port = 10_000 + (int(environment["SLURM_JOB_ID"]) + 1009 * int(environment["SLURM_STEP_ID"])) % 20_000
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": "0" if one_device_a_task else environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def _first_host(nodes: str) -> str:
    """Return the first of `node[1-2,7]`."""
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"srun: scontrol cannot tell the first host of SLURM_STEP_NODELIST {nodes!r} ({error}); "
            "set MASTER_ADDR in the batch script, before srun"
        ) from error
    return done.stdout.split()[0]
