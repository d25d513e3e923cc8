"""Random generators of a rank: Python's, numpy's and torch's. What a run draws after a resume is what it would have."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmtp_train.atomic_io import write_tensors
from wmtp_train.ranks.mesh import Mesh


def save_rng(folder: Path, mesh: Mesh) -> None:
    """Save this rank's generators as a file of its own."""
    write_tensors(_state(), _file(folder, mesh))


def restore_rng(folder: Path, mesh: Mesh) -> None:
    """Restore this rank's generators as the rank of the same number saved them."""
    state = torch.load(_file(folder, mesh), weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def reseed(seed: int, step: int, mesh: Mesh) -> None:
    """Seed the generators of a rank whose streams nobody has drawn before, as with another number of processes.

    They depend on `seed`, `step` and the rank alone, so that resuming twice draws the same twice.
    """
    own = np.random.SeedSequence((seed, step, mesh.rank)).generate_state(1)[0]
    random.seed(int(own))
    np.random.seed(own)
    torch.manual_seed(int(own))


def _file(folder: Path, mesh: Mesh) -> Path:
    return folder / f"rng_{mesh.rank:05d}.pt"


def _state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}
