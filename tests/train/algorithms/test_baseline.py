import torch

from wmtp_core import UniformWeighting


def test_it_wires_uniform_weights_and_nothing_else(make_trainer, make_settings):
    trainer = make_trainer(algo="mtp-baseline")
    assert trainer.loop.run.step.weighting.weighting == UniformWeighting()
    assert trainer.loop.run.step.reference is None
    assert trainer.loop.run.step.value_objective is None
    assert trainer.run.policy.value_head is None


def test_every_valid_target_weighs_one(make_trainer):
    trainer = make_trainer(algo="mtp-baseline", reference={"source": None})
    trainer.train()
    for signals, weights in trainer.loop.run.step.weighting.seen:
        assert torch.equal(weights, signals.valid.float())
        assert signals.reference_ce is None


def test_one_head_is_plain_next_token_prediction(make_trainer):
    metrics = make_trainer(algo="mtp-baseline", model={"horizon": 1}).train()
    assert [name for name in metrics if "/ce/" in name] == ["held_out/ce/head_0"]
