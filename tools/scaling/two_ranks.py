"""What DeepSpeed and selection really hold, move and write, on two gloo processes with a small model."""

import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from scaling.collectives import Collectives
from scaling.engines import FOLDER, NAMES
from scaling.small_model import ACCUMULATION, HORIZON, LENGTH, LLAMA, RANKS, ROWS, VOCABULARY
from scaling.tensors import float_storages, new_bytes
from wmtp_core.selection import select_by_excess
from wmtp_models import build_policy
from wmtp_train.engines.deepspeed.engine import build_engine, read_deepspeed_config
from wmtp_train.ranks.lifecycle import start_processes
from wmtp_train.settings.schema import OptimizerSettings

BUCKET = 500_000  # elements, more than the model has


@dataclass(frozen=True)
class Measured:
    """What rank 0 saw of one engine, in bytes."""

    parameters: int
    """P, a number and no bytes."""
    largest: int
    """Elements of the largest parameter."""
    held: int
    """All float tensors after a micro-batch's backward that is not the step's last, wherever they are."""
    exchanging: int
    """The same at most, in the second step, while gradients are on their way."""
    messages: dict[str, int]
    """Whole tensors handed to each kind of collective in one optimizer step."""
    checkpoint: int


def measure_two_ranks() -> tuple[dict[str, Measured], int]:
    """Train two steps with each file of ds_configs, save, and select once over both ranks.

    Returns:
        What was seen by file, and the bytes that selection's gather gave a rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (Path(folder), port), nprocs=RANKS)
        seen = json.loads((Path(folder) / "seen.json").read_text())
    return {name: Measured(**measured) for name, measured in seen["engines"].items()}, seen["selection"]


def _rank(rank: int, folder: Path, port: int) -> None:
    sys.stdout = sys.stderr  # DeepSpeed prints, and what is printed here is a table
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    collectives = Collectives()
    start_processes()
    seen = {name: _measure_engine(name, folder, rank, collectives) for name in NAMES}
    collectives.begin({})
    ce = torch.rand(ROWS, LENGTH, HORIZON)
    select_by_excess(ce, torch.rand(ROWS, LENGTH), ce > 0.1, 0.6, group=dist.group.WORLD)
    if rank == 0:
        engines = {name: vars(measured) for name, measured in seen.items()}
        found = {"engines": engines, "selection": collectives.moved.total()}
        (folder / "seen.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _measure_engine(name: str, folder: Path, rank: int, collectives: Collectives) -> Measured:
    before = float_storages()  # some are the last engine's, and are freed any time: what counts is what is new
    engine = _engine(name, folder / f"{name}.{rank}.json")
    sizes = [getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()]
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % VOCABULARY
    held = 0
    for _step in range(2):  # the first one allocates the optimizer's state
        collectives.begin(before)
        for number in range(ACCUMULATION):
            output = engine(input_ids=ids)
            engine.backward(output.ce.mean())
            del output
            if number == 0:
                held = new_bytes(before)
            engine.step()
    messages = dict(collectives.moved)
    engine.save_checkpoint(str(folder), tag=name, save_latest=False)
    files = (folder / name).glob("*.pt")
    engine.destroy()
    return Measured(
        sum(sizes), max(sizes), held, collectives.held, messages, sum(file.stat().st_size for file in files)
    )


def _engine(name: str, path: Path) -> DeepSpeedEngine:
    config = json.loads((FOLDER / f"{name}.json").read_text())
    config |= {"train_micro_batch_size_per_gpu": ROWS, "gradient_accumulation_steps": ACCUMULATION}
    # Buckets and thresholds are constants of DeepSpeed's that a small model would drown in.
    config["zero_optimization"]["reduce_bucket_size"] = BUCKET
    if config["zero_optimization"]["stage"] == 3:
        thresholds = (
            "param_persistence_threshold",
            "max_live_parameters",
            "max_reuse_distance",
            "prefetch_bucket_size",
        )
        config["zero_optimization"] |= {f"stage3_{threshold}": 0 for threshold in thresholds}
    path.write_text(json.dumps(config))
    policy = build_policy(LLAMA, VOCABULARY, HORIZON)
    return build_engine(policy, read_deepspeed_config(path, RANKS), OptimizerSettings(), steps=4)
