import math

import pytest
import torch

from wmtp_core import CriticWeighting, UniformWarmup
from wmtp_train.algorithms.critic import RewardObjective
from wmtp_train.data.batch import Batch


def test_it_wires_the_settings_and_a_value_head(processes, make_trainer):
    critic = {
        "discount": 0.5,
        "temperature": 2.0,
        "advantage": "gae",
        "gae_lambda": 0.25,
        "transform": "exp",
        "beta": 3.0,
        "clip": 4.0,
        "value_warmup_steps": 7,
    }
    trainer = make_trainer(algo="critic-wmtp", critic=critic)
    warmup_steps = critic.pop("value_warmup_steps")
    assert trainer.loop.run.step.weighting.weighting == UniformWarmup(
        CriticWeighting(**critic, group=processes.data_parallel), warmup_steps
    )
    assert trainer.run.policy.value_head is not None
    assert trainer.loop.run.step.reference is None


@pytest.mark.parametrize("transform", ["softmax", "exp"])
def test_weights_are_uniform_until_the_warm_up_has_ended(make_trainer, transform):
    changes = {"critic": {"value_warmup_steps": 2, "transform": transform}, "data": {"evaluate": {}}}
    trainer = make_trainer(algo="critic-wmtp", steps=4, **changes)
    trainer.train()
    assert [signals.step for signals, _ in trainer.loop.run.step.weighting.seen] == [0, 1, 2, 3]
    for signals, weights in trainer.loop.run.step.weighting.seen:
        uniform = signals.valid.float()
        assert torch.equal(weights, uniform) is (signals.step < 2)
        assert weights.sum().item() == pytest.approx(uniform.sum().item(), rel=1e-5)
        assert bool((weights[~signals.valid] == 0).all())


def test_weights_at_a_position_sum_to_its_valid_heads(make_trainer):
    trainer = make_trainer(algo="critic-wmtp", steps=4, critic={"value_warmup_steps": 1}, data={"evaluate": {}})
    trainer.train()
    signals, weights = trainer.loop.run.step.weighting.seen[-1]
    torch.testing.assert_close(weights.sum(dim=-1), signals.valid.sum(dim=-1).float())


def trunk(weights):
    return {name: weight for name, weight in weights.items() if not name.startswith("value_head")}


@pytest.mark.parametrize("to_trunk", [False, True])
def test_during_the_warm_up_the_trunk_learns_as_the_baseline_does_unless_it_is_let_in(
    make_trainer, weights_of, to_trunk
):
    changes = {"steps": 3, "data": {"evaluate": {}}}
    baseline = make_trainer("baseline", algo="mtp-baseline", **changes)
    critic = make_trainer("critic", algo="critic-wmtp", critic={"gradient_to_trunk": to_trunk}, **changes)
    before = weights_of(critic)
    for trainer in (baseline, critic):
        trainer.train()
    ours, theirs = trunk(weights_of(critic)), weights_of(baseline)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) is not to_trunk
    assert not torch.equal(weights_of(critic)["value_head.value.weight"], before["value_head.value.weight"])


def test_the_value_head_learns_to_tell_good_text_from_broken(make_trainer, write_deepspeed):
    trainer = make_trainer(
        algo="critic-wmtp",
        steps=60,
        critic={"value_coefficient": 1.0, "value_warmup_steps": 50, "gradient_to_trunk": True},
        deepspeed_config=write_deepspeed(train_batch_size=8),
    )
    assert trainer.loop.run.evaluate(trainer.loop.number)["held_out/value_auc"] == 0.5
    assert trainer.train()["held_out/value_auc"] > 0.8


def test_pairs_teach_by_ranking(processes, make_trainer, tiny_home):
    files = [str(tiny_home / "pairs.jsonl")]
    trainer = make_trainer(algo="critic-wmtp", steps=30, data={"train": files, "evaluate": {}})
    batch = next(trainer.run.train.training_batches(processes, trainer.run.micro_batch, 0, {}))

    def ranking_loss():
        trainer.run.policy.eval()
        step = trainer.loop.run.step
        losses, mask = step.value_objective(step.evaluate(batch, 0)[0].values, batch)
        assert mask.any()
        return float(losses.sum() / mask.sum())

    assert ranking_loss() == pytest.approx(0.6931, abs=1e-4)
    trainer.train()
    assert ranking_loss() < 0.5


def test_pairs_and_rewards_teach_side_by_side():
    """Neither silences the other: their losses add up, and so do their numbers."""
    row = [[0, 0, 1, 1, 2, 2]]
    batch = Batch(
        input_ids=torch.zeros(1, 6, dtype=torch.int64),
        labels=torch.zeros(1, 6, dtype=torch.int64),
        position_ids=torch.tensor([[0, 1, 0, 1, 0, 1]]),
        document_ids=torch.tensor(row),
        row_ids=torch.tensor([0]),
        rewards=torch.tensor([[torch.nan] * 4 + [1.0, 1.0]]),
        pairs=torch.tensor([[1, 1, -1, -1, 0, 0]]),
    )
    values = torch.tensor([[0.0, 2.0, 0.0, 0.5, 0.25, 0.5]])
    losses, counts = RewardObjective(return_lambda=1.0)(values, batch)
    assert counts.tolist() == [[0, 0, 0, 1, 1, 1]]
    ranking = math.log1p(math.exp(-(2.0 - 0.5)))
    assert losses[0].tolist() == pytest.approx([0, 0, 0, ranking, 0.75**2, 0.5**2])
