"""Sequential heads under every algorithm; splits, resume, freezing and LoRA are tested beside those of other heads."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from wmtp_train.algorithms import TRAINERS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algo", TRAINERS)
def test_every_algorithm_trains_every_module(make_trainer, algo, shared):
    trainer = make_trainer(algo=algo, steps=2, model={"head_kind": "sequential", "shared_module": shared})
    before = {name: weight.detach().clone() for name, weight in trainer.loop.engine.policy.named_parameters()}
    metrics = trainer.train()
    assert all(math.isfinite(value) for value in metrics.values())
    assert {f"held_out/acceptance/head_{head}" for head in (1, 2)} < metrics.keys()
    after = dict(trainer.loop.engine.policy.named_parameters())
    heads = [name for name in before if name.startswith("heads.")]
    assert any(name.startswith("heads.layers.1.") for name in heads) == (not shared)
    assert [name for name in heads if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(
    make_trainer, write_deepspeed, tmp_path, shared, stage
):
    model = {"head_kind": "sequential", "shared_module": shared}
    changes = {"algo": "rho1-wmtp", "steps": 4, "save_every": 2, "model": model}
    changes["deepspeed_config"] = write_deepspeed(stage=stage)
    make_trainer("whole", **changes).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "model")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_00000004")
    make_trainer("halves", resume=True, **changes).train()
    whole, halves = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert whole.keys() == halves.keys()
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
