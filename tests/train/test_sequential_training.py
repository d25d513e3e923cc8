"""Sequential heads under every algorithm; splits, resume, freezing and LoRA are tested beside those of other heads."""

import math

import pytest
import torch

from wmtp_train.algorithms import TRAINERS


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
