"""Checkpoints from strangers: a program in any file of one is not run by resuming."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from jobs import SETTINGS, learn

from wmtp_core import UserError
from wmtp_train.checkpoint import load_checkpoint, save_checkpoint
from wmtp_train.engines.deepspeed.unpickling import known_types_only

STAGES = [0, 1, 2, 3]


class Program:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def checkpoint(processes, make_engine, tmp_path):
    def save(stage):
        engine = make_engine(stage=stage)
        learn(engine, processes, 0, 1)
        save_checkpoint(engine, processes, tmp_path, 1, {}, keep=1)
        return tmp_path / "step_00000001"

    return save


def test_the_program_would_run(tmp_path):
    torch.save({"module": Program(tmp_path / "ran")}, tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_no_file_of_a_checkpoint_runs_a_program(checkpoint, processes, make_engine, tmp_path, stage, which, form):
    path = checkpoint(stage)
    pickles = sorted(path.glob("*.pt"))
    assert len(pickles) == (1 if stage == 0 else 2)
    hostile = pickles[which % len(pickles)]
    content = torch.load(hostile, weights_only=False)
    form({**content, "dropped": Program(tmp_path / "ran")}, hostile)
    with pytest.raises(UserError, match=re.escape(f"checkpoint {path}: a file in it is not what DeepSpeed writes")):
        load_checkpoint(make_engine(stage=stage), processes, path, {}, SETTINGS)
    assert not (tmp_path / "ran").exists()


def test_nor_do_the_random_generators(checkpoint, processes, make_engine, tmp_path):
    path = checkpoint(1)
    (generators,) = path.glob("rng_*")
    generators.write_bytes(pickle.dumps(Program(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"rng_00000\.safetensors: no state of random generators"):
        load_checkpoint(make_engine(stage=1), processes, path, {}, SETTINGS)
    assert not (tmp_path / "ran").exists()


def test_where_it_ends_torch_loads_as_before(tmp_path):
    torch.save({"path": Path("x")}, tmp_path / "file.pt")
    with pytest.raises(UserError), known_types_only(tmp_path):
        torch.load(tmp_path / "file.pt", weights_only=False)
    assert torch.load(tmp_path / "file.pt", weights_only=False) == {"path": Path("x")}
