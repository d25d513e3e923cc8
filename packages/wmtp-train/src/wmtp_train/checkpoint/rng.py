"""Random generators of a rank: Python's, numpy's and torch's. What a run draws after a resume is what it would have."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wmtp_train.engines.deepspeed.writer import write_tensors


def save_rng(folder: Path) -> None:
    """This rank's generators, as a file of its own."""
    write_tensors(_state(), _file(folder))


def restore_rng(folder: Path) -> None:
    """This rank's generators as its namesake saved them."""
    state = torch.load(_file(folder), weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def reseed(seed: int, step: int) -> None:
    """Generators for a rank of another number of processes, whose streams nobody has drawn before.

    They depend on `seed`, `step` and the rank alone, so that resuming twice draws the same twice.
    """
    own = np.random.SeedSequence((seed, step, dist.get_rank())).generate_state(1)[0]
    random.seed(int(own))
    np.random.seed(own)
    torch.manual_seed(int(own))


def _file(folder: Path) -> Path:
    return folder / f"rng_{dist.get_rank():05d}.pt"


def _state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}
