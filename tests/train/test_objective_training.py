"""Runs whose heads learn from head 0, or move nothing but themselves."""

import math

import pytest
import torch

from wmtp_core import UserError
from wmtp_train.algorithms import TRAINERS

DISTILL = {"objective": "distill", "model": {"detach_heads": True, "head_kind": "sequential"}}


@pytest.mark.slow
@pytest.mark.parametrize("algo", TRAINERS)
def test_every_algorithm_distills(make_trainer, algo):
    trainer = make_trainer(algo=algo, steps=2, **DISTILL)
    metrics = trainer.train()
    assert all(math.isfinite(value) for value in metrics.values())
    for head in (1, 2):
        assert 0 <= metrics[f"held_out/sampled_acceptance/head_{head}"] <= 1


def test_heads_that_learn_from_head_0_come_nearer_to_it(make_trainer, write_deepspeed):
    """And the trunk takes the steps that it takes with a single head: its gradient is the same but for a factor."""
    changes = {"steps": 6, "optimizer": {"learning_rate": 0.003}}
    changes["deepspeed_config"] = write_deepspeed(gradient_clipping=0.0)  # by a norm that heads have a part in
    trainer = make_trainer("distilled", algo="reach-wmtp", **changes, **DISTILL)
    policy = trainer.loop.engine.policy
    before = trainer.run.evaluate(0)
    after = trainer.train()
    assert after["held_out/sampled_acceptance/head_1"] > before["held_out/sampled_acceptance/head_1"]

    alone = make_trainer("alone", algo="mtp-baseline", **changes, model={"horizon": 1})
    alone.train()
    plain = dict(alone.loop.engine.policy.causal_lm.named_parameters())
    attached = make_trainer("attached", algo="mtp-baseline", **changes, objective="distill")
    attached.train()
    moved = dict(attached.loop.engine.policy.causal_lm.named_parameters())
    for name, weight in policy.causal_lm.named_parameters():
        # Not to the bit: to Adam a gradient's size is not quite nothing.
        assert (weight - plain[name]).norm() < 5e-3 * weight.norm(), name
        assert (weight - plain[name]).norm() < (moved[name] - plain[name]).norm() / 5, name


@pytest.mark.slow
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(make_trainer, tmp_path):
    changes = {"algo": "reach-wmtp", "steps": 4, "save_every": 2, "keep_best": "held_out/tokens_per_forward", **DISTILL}
    whole = make_trainer("run", **changes)
    whole.train()
    weights = {name: weight.clone() for name, weight in whole.loop.engine.policy.named_parameters()}
    (tmp_path / "run" / "checkpoints" / "step_00000004").rename(tmp_path / "gone")
    resumed = make_trainer("run", resume=True, **changes)
    resumed.train()
    for name, weight in resumed.loop.engine.policy.named_parameters():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"objective": "distill", "model": {"horizon": 1}}, "objective: distill is for heads after the first, and mod"),
        ({"model": {"horizon": 1, "detach_heads": True}}, "model.detach_heads: true is for heads after the first, an"),
        ({"distill": {"divergence": "reverse-kl"}}, "distill is set, and objective is cross-entropy: set it to disti"),
    ],
)
def test_what_cannot_be_learned_ends_in_one_line(make_trainer, changes, problem):
    with pytest.raises(UserError, match=problem):
        make_trainer(algo="mtp-baseline", **changes)


@pytest.mark.parametrize("distill", [{"divergence": "kl"}, {"cross_entropy": 1.0}, {"cross_entropy": -0.1}])
def test_distillations_that_there_are_not(make_settings, distill):
    with pytest.raises(ValueError, match="distill"):
        make_settings(objective="distill", distill=distill)
