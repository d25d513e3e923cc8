import json
import random

import numpy as np
import pytest
import torch
from jobs import SETTINGS, learn, state_of

from wmtp_core import UserError
from wmtp_train.checkpoint import load_checkpoint, save_checkpoint
from wmtp_train.checkpoint.rng import reseed


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loaded_checkpoint_goes_on_bit_for_bit(processes, make_engine, tmp_path, stage):
    engine = make_engine(stage=stage)
    learn(engine, processes, 0, 2)
    save_checkpoint(engine, processes, tmp_path, 2, {"note": "mine"}, keep=1)
    at_two = state_of(engine)
    drawn = random.random(), float(np.random.rand()), torch.rand(3).tolist()
    learn(engine, processes, 2, 4)

    again = make_engine(seed=1, stage=stage)
    state = load_checkpoint(again, processes, tmp_path / "step_00000002", {"note": "mine"}, SETTINGS)
    assert (state["note"], state["step"]) == ("mine", 2)
    assert equal(state_of(again), at_two)
    assert drawn == (random.random(), float(np.random.rand()), torch.rand(3).tolist())
    learn(again, processes, 2, 4)
    assert equal(state_of(again), state_of(engine))
    assert not equal(state_of(again), at_two)
    assert again.learning_rate == engine.learning_rate


def test_another_run_and_another_stage_are_refused(processes, make_engine, tmp_path):
    save_checkpoint(make_engine(), processes, tmp_path, 3, {"seed": 1}, keep=1)
    path = tmp_path / "step_00000003"
    with pytest.raises(UserError, match=f"checkpoint {path}: saved with stage 1 .this run: 2.; start it alike"):
        load_checkpoint(make_engine(stage=2), processes, path, {"seed": 1}, SETTINGS)
    with pytest.raises(UserError, match=f"checkpoint {path}: saved with seed 1 .this run: 2.; start it alike"):
        load_checkpoint(make_engine(), processes, path, {"seed": 2}, SETTINGS)


def test_other_versions_are_told_and_go_on(processes, make_engine, tmp_path, capfd):
    save_checkpoint(make_engine(), processes, tmp_path, 3, {}, keep=1)
    run = tmp_path / "step_00000003" / "run.json"
    about = json.loads(run.read_text())
    load_checkpoint(make_engine(), processes, run.parent, {}, SETTINGS)
    assert capfd.readouterr().err == ""
    now = about["versions"]["torch"]
    about["versions"]["torch"] = "0.1"
    run.write_text(json.dumps(about))
    assert load_checkpoint(make_engine(), processes, run.parent, {}, SETTINGS)["step"] == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f"step_00000003 was saved by other versions: torch 0.1 → {now}")


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_generators_of_another_world_depend_on_seed_and_step(processes):
    found = {}
    for seed, step in [(0, 2), (0, 4), (1, 2)]:
        reseed(seed, step, processes)
        found[seed, step] = draws()
        reseed(seed, step, processes)
        assert draws() == found[seed, step]
    assert len({value for triple in found.values() for value in triple}) == 9
