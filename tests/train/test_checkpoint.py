import json
import os
import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_tokenizer
from wmtp_train import checkpoint as module
from wmtp_train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint, save_model
from wmtp_train.engine import build_engine
from wmtp_train.models import open_policy


@pytest.fixture
def make_engine(processes, make_settings, tiny_home):
    def make(seed=0, stage=1):
        settings = make_settings(seed=seed)
        policy = open_policy(settings, load_tokenizer(tiny_home / "tokenizer"), value_head=False)
        config = {"train_batch_size": 2, "zero_optimization": {"stage": stage}}
        return build_engine(policy, config, settings.optimizer, steps=10)

    return make


def learn(engine, steps):
    for _ in range(steps):
        rows = torch.randint(50, (2, 16))  # from the global generator: it must come back too
        engine.backward(engine(rows).ce.mean())
        engine.step()


def weights(engine):
    return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_loaded_checkpoint_goes_on_bit_for_bit(make_engine, tmp_path, stage):
    engine = make_engine(stage=stage)
    learn(engine, 2)
    save_checkpoint(engine, tmp_path, 2, {"note": "mine"}, keep=1)
    at_two = weights(engine)
    drawn = random.random(), float(np.random.rand())
    learn(engine, 2)

    again = make_engine(seed=1, stage=stage)
    state = load_checkpoint(again, tmp_path / "step_00000002", {})
    assert (state["note"], state["step"]) == ("mine", 2)
    assert equal(weights(again), at_two)
    assert drawn == (random.random(), float(np.random.rand()))
    learn(again, 2)
    assert equal(weights(again), weights(engine))
    assert not equal(weights(again), at_two)
    assert again.get_lr() == engine.get_lr()


def test_the_newest_of_complete_checkpoints_is_found_by_its_step(make_engine, tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    engine = make_engine()
    for step in (9, 10, 100):
        save_checkpoint(engine, tmp_path, step, {}, keep=5)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000100"


def test_only_the_newest_are_kept(make_engine, tmp_path):
    engine = make_engine()
    for step in (1, 2, 3, 4):
        save_checkpoint(engine, tmp_path, step, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["step_00000003", "step_00000004"]


def test_a_checkpoint_says_what_wrote_it(make_engine, tmp_path):
    save_checkpoint(make_engine(stage=2), tmp_path, 7, {}, keep=1)
    about = json.loads((tmp_path / "step_00000007" / "run.json").read_text())
    assert about == {"step": 7, "world_size": 1, "stage": 2}


def test_a_save_that_is_cut_off_leaves_the_last_checkpoint_as_the_newest(make_engine, tmp_path, monkeypatch):
    engine = make_engine()
    save_checkpoint(engine, tmp_path, 1, {}, keep=1)
    before = weights(engine)
    learn(engine, 1)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(engine, tmp_path, 2, {}, keep=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    again = make_engine(seed=1)
    load_checkpoint(again, tmp_path / "step_00000001", {})
    assert equal(weights(again), before)
    save_checkpoint(engine, tmp_path, 2, {}, keep=1)  # over what was left lying about
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step_00000002"]


DAMAGE = {
    "no run.json": lambda folder: (folder / "run.json").unlink(),
    "a broken run.json": lambda folder: (folder / "run.json").write_text("{"),
    "a run.json of something else": lambda folder: (folder / "run.json").write_text("{}"),
    "no states": lambda folder: (folder / "mp_rank_00_model_states.pt").unlink(),
    "cut-off states": lambda folder: os.truncate(folder / "mp_rank_00_model_states.pt", 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_no_checkpoint_is_refused_by_name(make_engine, tmp_path, damage):
    engine = make_engine()
    save_checkpoint(engine, tmp_path, 3, {}, keep=1)
    DAMAGE[damage](tmp_path / "step_00000003")
    with pytest.raises(UserError, match=f"checkpoint {tmp_path}/step_00000003: "):
        load_checkpoint(engine, tmp_path / "step_00000003", {})


@pytest.mark.parametrize(("name", "there"), [("world_size", 2), ("stage", 2)])
def test_a_checkpoint_of_another_layout_is_refused(make_engine, tmp_path, name, there):
    engine = make_engine()
    save_checkpoint(engine, tmp_path, 3, {}, keep=1)
    run = tmp_path / "step_00000003" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), name: there}))
    with pytest.raises(UserError, match=f"saved with {name} {there}, this run has 1"):
        load_checkpoint(engine, tmp_path / "step_00000003", {})


@pytest.mark.parametrize("stage", [1, 3])
def test_the_final_model_loads_with_its_tokenizer(make_engine, tiny_home, tmp_path, stage):
    engine = make_engine(stage=stage)
    learn(engine, 1)
    tokenizer = load_tokenizer(tiny_home / "tokenizer")
    engine.eval()
    rows = torch.arange(16)[None]
    with torch.no_grad():
        expected = engine(rows).ce
    for _ in range(2):  # a second time over the first
        save_model(engine, tokenizer, tmp_path / "model")
    model = MtpForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(model(rows).ce, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == ["model"]
