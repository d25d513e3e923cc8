import math
from dataclasses import replace

import pytest
import torch

from wmtp_core import (
    HeadWeighting,
    LabelledWeighting,
    RandomWeighting,
    Rho1Weighting,
    UniformWarmup,
    UniformWeighting,
    UserError,
    WeightPlan,
)
from wmtp_models import MtpOutput
from wmtp_train.algorithms.critic import RewardObjective
from wmtp_train.step import LossNormalizers, Step

HORIZON = 3


class Policy:
    """Gives known losses and remembers what it was asked."""

    def __init__(self, output):
        self.output, self.asked = output, []

    def __call__(self, **arguments):
        self.asked.append(arguments)
        return self.output


class Reference:
    """Gives known losses and counts its calls."""

    def __init__(self, losses):
        self.losses, self.calls = losses, 0

    def token_losses(self, input_ids, position_ids, document_ids, bounds):
        self.calls += 1
        return self.losses


@pytest.fixture
def make_step(processes):
    def make(output, weighting, reference=None, value_objective=None, normalize_by="valid"):
        return Step(Policy(output), weighting, HORIZON, processes, reference, value_objective, 0.25, normalize_by)

    return make


def valid_targets(batch):
    """(row, position, head) of every target, by the definition."""
    rows, length = batch.input_ids.shape
    return {
        (b, t, h)
        for b in range(rows)
        for h in range(HORIZON)
        for t in range(length - h - 1)
        if batch.labels[b, t + h + 1] != -100 and batch.document_ids[b, t] == batch.document_ids[b, t + h + 1]
    }


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
def test_denominators_count_every_micro_batch_of_the_step(make_step, random_micro_batch, normalize_by, scope):
    batches = [random_micro_batch(seed)[0] for seed in range(3)]
    step = make_step(None, Rho1Weighting(0.4, scope), None, RewardObjective(0.9), normalize_by)
    expected = [0] * HORIZON
    for batch in batches:
        targets = valid_targets(batch)
        groups = [{0, 1, 2}] if scope == "batch" else [{0}, {1}, {2}]
        for h in range(HORIZON):
            for rows in groups:
                n = sum(row in rows and head == h for row, _, head in targets)
                keep = 1 + math.floor(0.4 * (n - 1) + 1e-9) if n and h else n
                expected[h] += keep if normalize_by == "selected" else n
    _, normalizers = step.plan(batches, 0)
    assert normalizers.heads.tolist() == expected
    assert int(normalizers.values) == sum(int((~batch.rewards.isnan()).sum()) for batch in batches)
    assert normalizers.micro_batches == 3


@pytest.mark.parametrize(
    "weighting",
    [
        RandomWeighting(0.5),
        Rho1Weighting(0.5),
        Rho1Weighting(0.5, from_head=0),
        LabelledWeighting(),
        UniformWarmup(Rho1Weighting(0.5), 7),
        UniformWarmup(Rho1Weighting(0.5), 8),
    ],
    ids=str,
)
def test_the_denominators_of_selected_are_what_is_selected(make_step, random_micro_batch, weighting):
    micro_batches = [random_micro_batch(seed, step=7) for seed in range(3)]
    step = make_step(None, weighting, normalize_by="selected")
    _, normalizers = step.plan([batch for batch, _, _ in micro_batches], 7)
    kept = sum(weighting.plan(inputs).weights(output.ce).sum(dim=(0, 1)) for _, output, inputs in micro_batches)
    assert normalizers.heads.tolist() == kept.tolist()


def test_a_rule_that_cannot_count_ahead_divides_by_valid_targets_alone(make_step, random_micro_batch):
    class Plan(WeightPlan):
        counts = None

        def weights(self, ce, values=None):
            return (ce > ce.mean()).float()

    class AboveTheMean(HeadWeighting):
        def plan(self, inputs):
            return Plan()

    batch = random_micro_batch(0)[0]
    make_step(None, AboveTheMean()).plan([batch], 0)
    with pytest.raises(UserError, match=r'normalize_by: AboveTheMean does not know ahead .*; set it to "valid"'):
        make_step(None, AboveTheMean(), normalize_by="selected").plan([batch], 0)


def test_the_denominator_of_the_value_loss_is_exact_beyond_the_integers_of_float32(make_step, random_micro_batch):
    batch, _, _ = random_micro_batch(0)

    def many(values, batch):
        return values, torch.full_like(values, 2**20 + 1)

    _, normalizers = make_step(None, UniformWeighting(), None, many).plan([batch, batch], 0)
    assert normalizers.values.tolist() == 2 * batch.input_ids.numel() * (2**20 + 1)


def test_the_loss_is_the_weighted_sum_over_its_denominators(make_step, random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    ce, values = output.ce.requires_grad_(), output.values.requires_grad_()
    weighting = Rho1Weighting(0.5)
    auxiliary = torch.tensor(6.0, requires_grad=True)
    answer = MtpOutput(ce, output.valid, values, auxiliary_loss=auxiliary)
    step = make_step(answer, weighting, None, RewardObjective(1.0))
    (micro_batch,), _ = step.plan([batch], 3)
    loss = step.loss(micro_batch, LossNormalizers(torch.tensor([20, 10, 0]), torch.tensor(7.0), 4))

    weights = weighting.plan(loss.inputs).weights(loss.ce)
    expected = sum((ce[..., h] * weights[..., h]).sum() / n / HORIZON for h, n in enumerate((20, 10, 1)))
    known = ~batch.rewards.isnan()
    value_sum = ((values - batch.rewards)[known] ** 2).sum()  # λ = 1: every token regresses on the reward
    assert loss.policy.item() == pytest.approx(expected.item())
    assert loss.value_sum.item() == pytest.approx(value_sum.item())
    assert int(loss.value_count) == int(known.sum()) > 0
    assert loss.auxiliary.item() == 6.0 / 4
    assert loss.total.item() == pytest.approx(expected.item() + 0.25 * value_sum.item() / 7 + 6.0 / 4)
    assert torch.equal(loss.weights, weights)
    assert loss.inputs.step == 3

    loss.total.backward()
    shares = torch.tensor([1 / 20, 1 / 10, 1.0]) / HORIZON
    torch.testing.assert_close(ce.grad, weights * shares)
    torch.testing.assert_close(values.grad, ((values.detach() - batch.rewards) * 2 * 0.25 / 7).where(known, 0))
    assert auxiliary.grad.item() == 0.25


def test_what_weights_look_at_carries_no_gradient(make_step, random_micro_batch):
    batch, output, _ = random_micro_batch(1)

    class Watching(HeadWeighting):
        def plan(self, inputs):
            watched.append(inputs)
            plan = UniformWeighting().plan(inputs)
            weights = plan.weights
            plan.weights = lambda ce, values=None: (watched.extend([ce, values]), weights(ce, values))[1]
            return plan

    watched = []
    grown = MtpOutput(output.ce.requires_grad_(), output.valid, output.values.requires_grad_())
    step = make_step(grown, Watching())
    micro_batches, normalizers = step.plan([batch], 0)
    step.loss(micro_batches[0], normalizers)
    inputs, ce, values = watched
    assert not ce.requires_grad
    assert not values.requires_grad
    assert torch.equal(ce, output.ce)
    assert torch.equal(inputs.valid, output.valid)
    for name in ("token_labels", "row_ids", "document_ids", "reference_ce"):
        assert getattr(inputs, name) is getattr(batch, name)


def test_the_reference_runs_once_where_there_are_no_scores_and_never_where_there_are(make_step, random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    reference = Reference(torch.ones(3, 9))
    step = make_step(output, Rho1Weighting(0.5), reference)

    def reference_ce(batch):
        micro_batches, normalizers = step.plan([batch], 0)
        return step.loss(micro_batches[0], normalizers).inputs.reference_ce

    assert reference_ce(batch) is batch.reference_ce
    assert reference.calls == 0
    assert reference_ce(replace(batch, reference_ce=None)) is reference.losses
    assert reference.calls == 1


def test_the_policy_is_told_the_layout_and_the_plan_only_where_a_backward_follows(make_step, random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    step = make_step(output, Rho1Weighting(0.5))
    step.evaluate(batch, 0)
    (micro_batch,), _ = step.plan([batch], 0)
    step.loss(micro_batch, LossNormalizers(torch.tensor([4, 2, 0]), torch.tensor(0.0), 1))
    without, with_plan = step.policy.asked
    for name in ("input_ids", "labels", "position_ids", "document_ids"):
        assert without[name] is with_plan[name] is getattr(batch, name)
    assert without["plan"] is None
    assert with_plan["plan"].plan is micro_batch.plan
    assert with_plan["plan"].per_head.tolist() == [0.25, 0.5, 1.0]


def test_a_step_is_planned_before_its_first_forward_and_takes_one_backward_a_micro_batch(make_step, random_micro_batch):
    class Engine:
        def __init__(self):
            self.losses = []

        def train(self):
            assert not step.policy.asked

        def backward_and_step(self, loss):
            self.losses.append(loss.item())
            return torch.tensor(2.0) if len(self.losses) == 3 else None

    batch, output, _ = random_micro_batch(1)
    step, engine = make_step(output, Rho1Weighting(0.5)), Engine()
    losses, norm = step.train(engine, [batch] * 3, 0)
    assert norm == 2.0
    assert len(step.policy.asked) == len(losses) == 3
    assert engine.losses == pytest.approx([3 * loss.total.item() for loss in losses])
