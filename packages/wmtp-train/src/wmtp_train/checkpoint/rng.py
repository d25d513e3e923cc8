"""Random generators of a rank: Python's, numpy's and torch's. What a run draws after a resume is what it would have."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wmtp_core import UserError
from wmtp_train.atomic_io import write_bytes
from wmtp_train.ranks.mesh import Mesh


def save_rng(folder: Path, mesh: Mesh) -> None:
    """Save this rank's generators as a file of its own: numbers, and no pickle."""
    version, words, gauss = random.getstate()
    kind, keys, *others = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "python": torch.tensor(words), "numpy": torch.from_numpy(keys)}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = {"python": [version, gauss], "numpy": [kind, *others]}
    metadata = {name: json.dumps(values) for name, values in rest.items()}
    write_bytes(save(tensors, metadata), _file(folder, mesh))


def restore_rng(folder: Path, mesh: Mesh) -> None:
    """Restore this rank's generators as the rank of the same number saved them.

    Raises:
        UserError: its file is something else.
    """
    path = _file(folder, mesh)
    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            rest = {name: json.loads(values) for name, values in file.metadata().items()}
    except (SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: no state of random generators ({error}): remove the checkpoint {folder}") from error
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, *others = rest["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy(), *others))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def reseed(seed: int, step: int, mesh: Mesh) -> None:
    """Seed the generators of a rank whose streams nobody has drawn before, as with another number of processes.

    They depend on `seed`, `step` and the rank alone, so that resuming twice draws the same twice.
    """
    own = np.random.SeedSequence((seed, step, mesh.rank)).generate_state(1)[0]
    random.seed(int(own))
    np.random.seed(own)
    torch.manual_seed(int(own))


def _file(folder: Path, mesh: Mesh) -> Path:
    return folder / f"rng_{mesh.rank:05d}.safetensors"
