"""One of two gloo processes: plans the head weights of its half of every job. `two_ranks.py FOLDER RANK`."""

import dataclasses
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from signals import weights_of


def main(folder: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    found = []
    what, jobs = torch.load(folder / "jobs.pt", weights_only=False)
    for rule, signals_of_ranks in jobs:
        if "group" in {field.name for field in dataclasses.fields(rule)}:
            rule = dataclasses.replace(rule, group=dist.group.WORLD)
        signals = signals_of_ranks[rank]
        found.append(rule.plan(signals.inputs).counts if what == "counts" else weights_of(rule, signals))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()  # or one rank tears the store down under the other
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
