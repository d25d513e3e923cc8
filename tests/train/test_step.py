import math
from dataclasses import replace

import pytest
import torch

from wmtp_core import RandomWeighting, Rho1Weighting, UniformWarmup, UniformWeighting
from wmtp_models import MtpOutput
from wmtp_train.algorithms.critic import RewardObjective
from wmtp_train.step import LossNormalizers, Objective

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

    def token_losses(self, input_ids, position_ids, document_ids):
        self.calls += 1
        return self.losses


def make_objective(output, weighting, reference=None, value_objective=None, normalize_by="valid"):
    return Objective(Policy(output), weighting, reference, value_objective, 0.25, normalize_by, HORIZON)


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
def test_denominators_count_every_micro_batch_of_the_step(processes, random_micro_batch, normalize_by, scope):
    batches = [random_micro_batch(seed)[0] for seed in range(3)]
    objective = make_objective(None, Rho1Weighting(0.4, scope), None, RewardObjective(0.9), normalize_by)
    expected = [0] * HORIZON
    for batch in batches:
        targets = valid_targets(batch)
        groups = [{0, 1, 2}] if scope == "batch" else [{0}, {1}, {2}]
        for h in range(HORIZON):
            for rows in groups:
                n = sum(row in rows and head == h for row, _, head in targets)
                keep = 1 + math.floor(0.4 * (n - 1) + 1e-9) if n and h else n
                expected[h] += keep if normalize_by == "selected" else n
    counts = objective.count_targets(batches, 0)
    assert counts.heads.tolist() == expected
    assert int(counts.values) == sum(int((~batch.rewards.isnan()).sum()) for batch in batches)


@pytest.mark.parametrize(
    "weighting",
    [
        RandomWeighting(0.5),
        Rho1Weighting(0.5),
        Rho1Weighting(0.5, from_head=0),
        UniformWarmup(Rho1Weighting(0.5), 7),
        UniformWarmup(Rho1Weighting(0.5), 8),
    ],
    ids=str,
)
def test_the_denominators_of_selected_are_what_is_selected(processes, random_micro_batch, weighting):
    micro_batches = [random_micro_batch(seed, step=7) for seed in range(3)]
    objective = make_objective(None, weighting, normalize_by="selected")
    counts = objective.count_targets([batch for batch, _, _ in micro_batches], 7)
    kept = sum(weighting.compute_head_weights(signals).sum(dim=(0, 1)) for _, _, signals in micro_batches)
    assert counts.heads.tolist() == kept.tolist()


def test_the_denominator_of_the_value_loss_is_exact_beyond_the_integers_of_float32(processes, random_micro_batch):
    batch, _, _ = random_micro_batch(0)

    def many(values, batch):
        return values, torch.full_like(values, 2**20 + 1)

    objective = make_objective(None, UniformWeighting(), None, many)
    assert objective.count_targets([batch, batch], 0).values.tolist() == 2 * batch.input_ids.numel() * (2**20 + 1)


def test_the_loss_is_the_weighted_sum_over_its_denominators(random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    ce, values = output.ce.requires_grad_(), output.values.requires_grad_()
    weighting = Rho1Weighting(0.5)
    objective = make_objective(MtpOutput(ce, output.valid, values), weighting, None, RewardObjective(1.0))
    counts = LossNormalizers(torch.tensor([20, 10, 0]), torch.tensor(7.0))
    loss = objective.loss(batch, 3, counts)

    weights = weighting.compute_head_weights(loss.signals)
    expected = sum((ce[..., h] * weights[..., h]).sum() / n / HORIZON for h, n in enumerate((20, 10, 1)))
    known = ~batch.rewards.isnan()
    value_sum = ((values - batch.rewards)[known] ** 2).sum()  # λ = 1: every token regresses on the reward
    assert loss.policy.item() == pytest.approx(expected.item())
    assert loss.value_sum.item() == pytest.approx(value_sum.item())
    assert int(loss.value_count) == int(known.sum()) > 0
    assert loss.total.item() == pytest.approx(expected.item() + 0.25 * value_sum.item() / 7)
    assert torch.equal(loss.weights, weights)
    assert loss.signals.step == 3

    loss.total.backward()
    shares = torch.tensor([1 / 20, 1 / 10, 1.0]) / HORIZON
    torch.testing.assert_close(ce.grad, weights * shares)
    torch.testing.assert_close(values.grad, ((values.detach() - batch.rewards) * 2 * 0.25 / 7).where(known, 0))


def test_what_weights_look_at_carries_no_gradient(random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    grown = MtpOutput(output.ce.requires_grad_(), output.valid, output.values.requires_grad_())
    _, signals = make_objective(grown, UniformWeighting()).forward(batch, 0)
    assert not signals.ce.requires_grad
    assert not signals.values.requires_grad
    assert torch.equal(signals.ce, output.ce)
    assert torch.equal(signals.valid, output.valid)
    assert signals.noise is batch.noise
    assert signals.row_ids is batch.row_ids
    assert signals.document_ids is batch.document_ids


def test_the_reference_runs_once_where_there_are_no_scores_and_never_where_there_are(random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    reference = Reference(torch.ones(3, 9))
    objective = make_objective(output, Rho1Weighting(0.5), reference)
    counts = LossNormalizers(torch.ones(HORIZON), torch.tensor(0.0))
    assert objective.loss(batch, 0, counts).signals.reference_ce is batch.reference_ce
    assert reference.calls == 0
    assert objective.loss(replace(batch, reference_ce=None), 0, counts).signals.reference_ce is reference.losses
    assert reference.calls == 1


def test_the_policy_is_told_the_layout_and_guesses_only_where_a_backward_follows(random_micro_batch):
    batch, output, _ = random_micro_batch(1)
    objective = make_objective(output, Rho1Weighting(0.5))
    objective.forward(batch, 0)
    objective.forward(batch, 0, LossNormalizers(torch.tensor([4, 2, 0]), torch.tensor(0.0)))
    without, with_guess = objective.policy.asked
    for name in ("input_ids", "labels", "position_ids", "document_ids"):
        assert without[name] is with_guess[name] is getattr(batch, name)
    assert without["guess"] is None
    assert with_guess["guess"](None).per_head.tolist() == [0.25, 0.5, 1.0]
