"""What DeepSpeed and selection really hold, move and write, on two gloo processes with a small model."""

import functools
import gc
import inspect
import json
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_core.selection import select_top_excess
from wmtp_models import build_policy
from wmtp_train.engine import build_engine, read_deepspeed_config
from wmtp_train.processes import start_processes
from wmtp_train.settings import OptimizerSettings

RANKS, ACCUMULATION, HORIZON, ROWS, LENGTH = 2, 2, 4, 2, 32
VOCABULARY = 256
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
}
# How torch's collectives are called, and which argument is the whole tensor.
_COLLECTIVES = {
    "all_reduce": ("all_reduce", "tensor"),
    "all_gather": ("all_gather", "tensor_list"),
    "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "reduce_scatter": ("reduce_scatter", "input_list"),
    "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "reduce": ("reduce", "tensor"),
    "broadcast": ("broadcast", "tensor"),
}


@dataclass(frozen=True)
class Measured:
    """What rank 0 saw of one engine, in bytes."""

    parameters: int
    """P, a number and no bytes."""
    held: int
    """All float tensors after a micro-batch's backward that is not the step's last."""
    messages: dict[str, int]
    """Whole tensors handed to each kind of collective in one optimizer step."""
    checkpoint: int


def measure_two_ranks(stages: tuple[int, ...]) -> tuple[dict[int, Measured], int]:
    """Train two steps at each ZeRO stage, save, and select once over both ranks.

    Returns:
        What was seen by stage, and the bytes that selection's gather gave a rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (Path(folder), port, stages), nprocs=RANKS)
        seen = json.loads((Path(folder) / "seen.json").read_text())
    return {int(stage): Measured(**measured) for stage, measured in seen["stages"].items()}, seen["selection"]


def _rank(rank: int, folder: Path, port: int, stages: tuple[int, ...]) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    moved: Counter[str] = Counter()
    for name, (kind, whole) in _COLLECTIVES.items():
        setattr(dist, name, _counting(getattr(dist, name), kind, whole, moved))
    start_processes()
    seen = {stage: _measure_stage(stage, folder, rank, moved) for stage in stages}
    moved.clear()
    ce = torch.rand(ROWS, LENGTH, HORIZON)
    select_top_excess(ce, torch.rand(ROWS, LENGTH), ce > 0.1, 0.6, group=dist.group.WORLD)
    if rank == 0:
        found = {"stages": {stage: vars(measured) for stage, measured in seen.items()}, "selection": moved.total()}
        (folder / "seen.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _measure_stage(stage: int, folder: Path, rank: int, moved: Counter[str]) -> Measured:
    before = float_bytes()
    engine = _engine(stage, folder / f"deepspeed_{stage}.{rank}.json")
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % VOCABULARY
    held = 0
    for _step in range(2):  # the first one allocates the optimizer's state
        moved.clear()
        for number in range(ACCUMULATION):
            output = engine(input_ids=ids)
            engine.backward(output.ce.mean())
            del output
            if number == 0:
                held = float_bytes() - before
            engine.step()
    messages = dict(moved)
    engine.save_checkpoint(str(folder), tag=f"stage_{stage}", save_latest=False)
    files = (folder / f"stage_{stage}").glob("*.pt")
    engine.destroy()
    return Measured(parameters, held, messages, sum(file.stat().st_size for file in files))


def _engine(stage: int, path: Path) -> DeepSpeedEngine:
    # Buckets and thresholds are constants of DeepSpeed's that a small model would drown in.
    zero = {"stage": stage, "reduce_bucket_size": 1000}
    if stage == 3:
        zero |= {f"stage3_{name}": 0 for name in ("param_persistence_threshold", "max_live_parameters")}
        zero |= {f"stage3_{name}": 0 for name in ("max_reuse_distance", "prefetch_bucket_size")}
    batch = {"train_micro_batch_size_per_gpu": ROWS, "gradient_accumulation_steps": ACCUMULATION}
    path.write_text(json.dumps({**batch, "bf16": {"enabled": stage > 0}, "zero_optimization": zero}))
    policy = build_policy(LLAMA, VOCABULARY, HORIZON)
    return build_engine(policy, read_deepspeed_config(path, RANKS), OptimizerSettings(), steps=4)


def _counting(collective: Callable[..., Any], kind: str, whole: str, moved: Counter[str]) -> Callable[..., Any]:
    signature = inspect.signature(collective)

    @functools.wraps(collective)
    def counted(*args: Any, **kwargs: Any) -> Any:
        tensors = signature.bind(*args, **kwargs).arguments[whole]
        moved[kind] += sum(tensor.nbytes for tensor in ([tensors] if isinstance(tensors, torch.Tensor) else tensors))
        return collective(*args, **kwargs)

    return counted


def float_bytes() -> int:
    """Of all storages of floating-point tensors that Python can reach."""
    gc.collect()
    storages = {}
    for tensor in gc.get_objects():
        if issubclass(type(tensor), torch.Tensor):  # isinstance would ask torch's lazy attributes for their class
            for held in (tensor, tensor.grad if tensor.is_leaf else None):
                if held is not None and held.is_floating_point():
                    storages[held.untyped_storage().data_ptr()] = held.untyped_storage().nbytes()
    return sum(storages.values())
