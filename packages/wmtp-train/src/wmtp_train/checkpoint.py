"""Checkpoints of a run: written aside, made current by a rename, rotated, and found again; and the final model."""

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed import zero
from deepspeed.runtime.engine import DeepSpeedEngine
from transformers import PreTrainedTokenizerBase

from wmtp_core import UserError

_PREFIX = "step_"


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in `folder`, or None."""
    complete = _complete_checkpoints(folder)
    return complete[-1] if complete else None


def save_checkpoint(engine: DeepSpeedEngine, folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Save everything that a resumed run needs as `folder/step_NNNNNNNN`. Every rank must call it.

    Args:
        state: what the engine does not own; JSON, the same on every rank.
        keep: how many of the newest checkpoints stay.
    """
    name = f"{_PREFIX}{step:08d}"
    partial = f".{name}.partial"
    rngs: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(rngs, _rng_state())
    if dist.get_rank() == 0:
        shutil.rmtree(folder / partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=partial, client_state={"rng": rngs}, save_latest=False)
    if dist.get_rank() == 0:
        about = {**state, "step": step, "world_size": dist.get_world_size(), "stage": engine.zero_optimization_stage()}
        (folder / partial / "run.json").write_text(json.dumps(about, indent=2))
        _write_through(folder / partial)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(folder / partial, folder / name)
        for old in _complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


def load_checkpoint(engine: DeepSpeedEngine, path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Load weights, optimizer, schedule and random generators; returns the `state` that was saved, with "step".

    Args:
        expected: what of that state has to be as it was.

    Raises:
        UserError: `path` is not a checkpoint, is damaged, or is one of another run, number of processes or ZeRO stage.
    """
    try:
        about: dict[str, Any] = json.loads((path / "run.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {path}: no readable run.json, so this is not a checkpoint; remove it") from error
    if not {"world_size", "stage", "step"} <= about.keys():
        raise UserError(f"checkpoint {path}: its run.json is not one of a checkpoint; remove the folder")
    here = {"world_size": dist.get_world_size(), "stage": engine.zero_optimization_stage(), **expected}
    for name, value in here.items():
        if about.get(name) != value:
            raise UserError(
                f"checkpoint {path}: saved with {name} {about.get(name)}, this run has {value}; "
                "start it alike, or choose another output_dir"
            )
    try:
        _, client_state = engine.load_checkpoint(str(path.parent), tag=path.name)
    except (AssertionError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"checkpoint {path}: a file is missing or damaged ({type(error).__name__}); "
            "remove the folder, then --resume goes on from the one before"
        ) from error
    _restore_rng(client_state["rng"][dist.get_rank()])
    return about


def save_model(engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy and its tokenizer so that `from_pretrained` loads them. Every rank must call it."""
    state = {}
    for name, parameter in engine.module.named_parameters():
        # One parameter at a time: ZeRO-3's shards meet on rank 0 without the whole model on any device.
        with zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    state |= {
        name: buffer.cpu() for name, buffer in engine.module.named_buffers() if name in engine.module.state_dict()
    }
    if dist.get_rank() == 0:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        engine.module.save_pretrained(partial, state_dict=state)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    dist.barrier()


def _complete_checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if re.fullmatch(rf"{_PREFIX}\d{{8}}", path.name))


def _write_through(folder: Path) -> None:
    """Have every file on the disk before the rename that makes it current: a power cut keeps renames and loses data."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _restore_rng(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
