"""Trains runs on one, two and four ranks: `split_runs.py FOLDER`.

`FOLDER/runs.json` lists the settings of every run by name and, before it, by the number of its ranks. For each number
that many processes are forked, which train all of its runs one after the other; importing everything that training
needs takes longer than the runs. `FOLDER/NAME.pt` then holds what a run saw and became.
"""

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (here and below, so that no fork has to)
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.llama import modeling_llama  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `ranks`
from ranks import free_ports, rank_variables
from wmtp_train.algorithms import trainer_class
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.metrics.monitors import Monitors
from wmtp_train.ranks.lifecycle import start_processes
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.step import MicroBatchLoss


def train(settings: Settings, mesh: Mesh) -> dict[str, Any]:
    """Train by the whole product; the metrics of every step, the final weights, and row by row what was selected."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    metrics: list[dict[str, float]] = []
    add = MetricAccumulator.add

    def witness(statistics: MetricAccumulator, loss: MicroBatchLoss) -> None:
        seen.append((loss.inputs.row_ids, loss.inputs.valid, loss.weights != 0))
        add(statistics, loss)

    def read(monitors: Monitors, values: dict[str, float], step: int) -> None:
        if "train/weighted_loss" in values:
            metrics.append(values)

    MetricAccumulator.add, Monitors.write = witness, read
    trainer = trainer_class(settings.algo)(settings, mesh)
    trainer.train()
    MetricAccumulator.add = add
    mine = [torch.stack(micro_batches) for micro_batches in zip(*seen, strict=True)]
    ranks: list[list[Tensor]] = mesh.all_gather_object(mine)[:: trainer.run.mesh.sequence.count]
    # In the order in which rows are assigned: [micro-batches, ranks, m, …] → [rows of all steps, …]
    rows = [torch.stack(parts, dim=1).flatten(0, 2) for parts in zip(*ranks, strict=True)]
    weights = load_file(settings.output_dir / "model/model.safetensors")
    return {**dict(zip(("row_ids", "valid", "selected"), rows, strict=True)), "metrics": metrics, "weights": weights}


def be_rank(folder: Path, runs: dict[str, Any], rank: int, world: int, port: int) -> None:
    """Train the runs one after the other as this rank of so many."""
    os.environ.update(rank_variables(rank, world, port))
    mesh = start_processes()
    for name, settings in runs.items():
        found = train(Settings(**settings), mesh)
        if rank == 0:
            torch.save(found, folder / f"{name}.pt")
    dist.barrier()
    dist.destroy_process_group()


def wait_for(processes: Iterable[multiprocessing.process.BaseProcess]) -> int:
    """0 once all have ended well; 1 as soon as one has not, and then all have ended."""
    alive = {process.sentinel: process for process in processes}
    while alive:
        ended = [alive.pop(sentinel) for sentinel in connection.wait(list(alive))]
        if any(process.exitcode for process in ended):
            for process in alive.values():
                process.kill()
            return 1
    return 0


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    runs = {int(world): of_world for world, of_world in json.loads((folder / "runs.json").read_text()).items()}
    fork = multiprocessing.get_context("fork")
    gc.freeze()  # as in `ranks`
    ranks = [
        fork.Process(target=be_rank, args=(folder, runs[world], rank, world, port))
        for world, port in zip(runs, free_ports(len(runs)), strict=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    sys.exit(wait_for(ranks))
