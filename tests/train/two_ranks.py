"""One of two gloo processes: sums up and evaluates its share of the micro-batches. `two_ranks.py FOLDER RANK`."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from conftest import Answers
from wmtp_core import RandomWeighting, UserError
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.metrics.held_out import evaluate
from wmtp_train.ranks.collective import rank0_first, run_on_rank0_and_broadcast
from wmtp_train.ranks.mesh import Mesh


def main(folder: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    job = torch.load(folder / "jobs.pt", weights_only=False)[rank]
    everyone = dist.group.WORLD
    mesh = Mesh(rank, 2, torch.device("cpu"), everyone, everyone)
    names = ("hex", "shuffled")
    statistics = MetricAccumulator(3, names, mesh)
    for loss in job["losses"]:
        statistics.add(loss)
    found = {"statistics": statistics.read(job["steps"])}
    statistics.add(job["bad_loss"])
    try:
        statistics.refuse_non_finite(lambda: "no checkpoint")
    except (UserError, SystemExit) as end:
        found["end"] = end.args[0]
    step = Answers(job["evaluation"], RandomWeighting(0.5, "sequence"), mesh)
    found["evaluation"] = evaluate(step, [batch for batch, _, _ in job["evaluation"]], 0, names)
    trace = folder / "trace"

    def note() -> str:
        before = trace.read_text() if trace.exists() else ""
        trace.write_text(f"{before}{rank}")
        return before

    found["before_me"] = rank0_first(mesh, note, "the trace")
    found["of_rank_0"] = run_on_rank0_and_broadcast(mesh, lambda: f"found by {rank}", "the rank")
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
