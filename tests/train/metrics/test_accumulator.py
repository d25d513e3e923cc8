import math
from dataclasses import replace

import pytest
import torch
from ranks_that_measure import measure

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.step import MicroBatchLoss

KINDS = ("hex", "shuffled")
HORIZON = 3


def micro_batch(make, seed, step=0):
    """Losses whose weights are some 0 and some not 1."""
    _, output, signals = make(seed, HORIZON, step)
    draw = torch.Generator().manual_seed(seed + 1000)
    weights = torch.rand(signals.valid.shape, generator=draw).mul(2).where(signals.valid, 0)
    weights = weights.where(torch.rand(weights.shape, generator=draw) < 0.7, 0)
    policy, value_sum, value_count = torch.tensor(0.5 + seed), torch.tensor(2.0 * seed), torch.tensor(seed + 3)
    total = policy + value_sum
    return MicroBatchLoss(total, policy, value_sum, value_count, None, signals, output.ce, output.ce, weights)


def brute_force(micro_batches, steps, newest):
    """Every figure by loops over single targets; the threshold is that of the `newest` micro-batches only."""
    heads = [{"valid": 0, "selected": 0, "ce": 0.0, "reference": 0.0, "threshold": math.inf} for _ in range(HORIZON)]
    kinds = [[0, 0] for _ in range(len(KINDS) + 1)]
    loss = value_loss = value_count = entropy = positions = 0.0
    for number, one in enumerate(micro_batches):
        signals, weights = one.inputs, one.weights
        loss, value_loss, value_count = loss + one.policy, value_loss + one.value_sum, value_count + one.value_count
        rows, length, _ = signals.valid.shape
        for b in range(rows):
            for t in range(length):
                here = [h for h in range(HORIZON) if signals.valid[b, t, h]]
                positions += bool(here)
                total = sum(weights[b, t, h].item() for h in here)
                for h in here:
                    p, weight = t + h + 1, weights[b, t, h].item()
                    ce, reference = one.ce[b, t, h].item(), signals.reference_ce[b, p].item()
                    head = heads[h]
                    head["valid"] += 1
                    head["ce"] += ce
                    head["reference"] += reference
                    kinds[signals.token_labels[b, p]][0] += h >= 1
                    if weight:
                        entropy -= weight / total * math.log(weight / total)
                        head["selected"] += 1
                        kinds[signals.token_labels[b, p]][1] += h >= 1
                        if number in newest:
                            head["threshold"] = min(head["threshold"], ce - reference)
    metrics = {"train/weighted_loss": float(loss / steps)}
    for h, head in enumerate(heads):
        n = head["valid"]
        metrics |= {
            f"ce/head_{h}": head["ce"] / n,
            f"reference_ce/head_{h}": head["reference"] / n,
            f"excess_mean/head_{h}": (head["ce"] - head["reference"]) / n,
            f"threshold/head_{h}": head["threshold"],
            f"selected_count/head_{h}": head["selected"],
            f"selected_ratio/head_{h}": head["selected"] / n,
        }
    metrics |= {"critic/value_loss": float(value_loss / value_count), "critic/weight_entropy": entropy / positions}
    metrics["noise/precision"] = kinds[0][1] / sum(selected for _, selected in kinds)
    metrics["noise/recall"] = metrics["noise/kept/clean"] = kinds[0][1] / kinds[0][0]
    for kind, (targets, selected) in zip(KINDS, kinds[1:], strict=True):
        metrics[f"noise/kept/{kind}"] = selected / targets
        metrics[f"noise/precision/{kind}"] = kinds[0][1] / (kinds[0][1] + selected)
    return metrics


def test_metrics_are_those_of_a_loop_over_every_target(processes, random_micro_batch):
    micro_batches = [micro_batch(random_micro_batch, seed) for seed in range(4)]
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    for one in micro_batches:
        statistics.add(one)
    assert statistics.read(steps=2) == pytest.approx(brute_force(micro_batches, 2, newest={3}), rel=1e-5)


def test_reading_starts_a_new_interval(processes, random_micro_batch):
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    statistics.add(micro_batch(random_micro_batch, 1))
    statistics.read(1)
    second = micro_batch(random_micro_batch, 2)
    statistics.add(second)
    assert statistics.read(1) == pytest.approx(brute_force([second], 1, newest={0}), rel=1e-5)


def test_two_ranks_read_the_figures_of_both_together(random_micro_batch, tmp_path):
    shares = [[micro_batch(random_micro_batch, seed) for seed in seeds] for seeds in ((0, 1), (2, 3))]
    good, poisoned = micro_batch(random_micro_batch, 4, step=6), micro_batch(random_micro_batch, 4, step=6)
    poisoned.ce[2, 0, 1] = math.nan
    jobs = [
        {"losses": share, "steps": 2, "bad_loss": bad, "evaluation": [random_micro_batch(9)]}
        for share, bad in zip(shares, (good, poisoned), strict=True)
    ]
    ranks = on_ranks(tmp_path, 2, measure, tmp_path, jobs)
    everything = brute_force(shares[0] + shares[1], 2, newest={1, 3})
    for rank in ranks:
        assert rank["statistics"] == pytest.approx(everything, rel=1e-5)
    said, silent = (rank["end"] for rank in ranks)
    assert said.startswith("step 7: the loss of head 1 on rank 1 is not finite; no checkpoint; ")
    assert silent == 2


def test_what_a_run_does_not_have_is_not_reported(processes, random_micro_batch):
    loss = micro_batch(random_micro_batch, 1)
    statistics = MetricAccumulator(HORIZON, (), processes)
    inputs = replace(loss.inputs, reference_ce=None, token_labels=None)
    statistics.add(replace(loss, inputs=inputs, value_sum=torch.tensor(0.0), value_count=torch.tensor(0)))
    kinds_of_figure = {tag.split("/")[0] for tag in statistics.read(1)}
    assert kinds_of_figure == {"train", "ce", "selected_count", "selected_ratio"}


def test_losses_that_are_not_cross_entropies_have_a_name_of_their_own(processes, random_micro_batch):
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    losses = [micro_batch(random_micro_batch, seed) for seed in (1, 2)]
    statistics.add(losses[0])
    assert not any(tag.startswith("distillation/") for tag in statistics.read(1))
    distilled = [replace(loss, losses=2 * loss.ce) for loss in losses]
    for loss in distilled:
        statistics.add(loss)
    metrics = statistics.read(1)
    for head in range(HORIZON):
        assert metrics[f"distillation/head_{head}"] == pytest.approx(2 * metrics[f"ce/head_{head}"])


def test_a_head_without_targets_is_no_division_by_zero(processes, random_micro_batch):
    loss = micro_batch(random_micro_batch, 1)
    loss.inputs.valid[..., 2] = False
    loss.ce[..., 2] = loss.losses[..., 2] = loss.weights[..., 2] = 0
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    statistics.add(loss)
    metrics = statistics.read(1)
    assert metrics["ce/head_2"] == metrics["selected_ratio/head_2"] == 0
    assert "threshold/head_2" not in metrics


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("head", range(HORIZON))
def test_the_first_loss_that_is_not_finite_is_named(processes, random_micro_batch, poison, head):
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    statistics.add(micro_batch(random_micro_batch, 1, step=4))
    statistics.refuse_non_finite(lambda: "the last good checkpoint is here")
    for step in (5, 6):
        loss = micro_batch(random_micro_batch, 1, step=step)
        loss.ce[0, 0, head] = poison
        if step == 6:
            loss.ce[0, 0] = poison  # what follows from a bad update is not what is named
        statistics.add(loss)
    statistics.read(3)
    message = rf"step 6: the loss of head {head} on rank 0 is not finite; the last good checkpoint is here; .*--resume"
    for _ in range(2):  # a read does not make it forgotten
        with pytest.raises(UserError, match=message):
            statistics.refuse_non_finite(lambda: "the last good checkpoint is here")


def test_a_value_loss_that_is_not_finite_is_named(processes, random_micro_batch):
    loss = micro_batch(random_micro_batch, 1, step=2)
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    statistics.add(replace(loss, value_sum=torch.tensor(math.nan)))
    with pytest.raises(UserError, match="step 3: the loss of the value head on rank 0"):
        statistics.refuse_non_finite(str)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_where_it_comes_before_its_losses(processes, random_micro_batch, poison):
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    for step, norm in ((4, 1.0), (5, poison)):
        statistics.refuse_non_finite(pytest.fail)
        statistics.add(micro_batch(random_micro_batch, 1, step=step - 1))
        statistics.add_gradient(torch.tensor(norm), step)
    statistics.read(2)
    message = "^step 5: the gradient is not finite, though every rank's loss is; here; .*--resume"
    with pytest.raises(UserError, match=message):
        statistics.refuse_non_finite(lambda: "here")
    statistics.add(replace(micro_batch(random_micro_batch, 1, step=5), value_sum=torch.tensor(math.nan)))
    with pytest.raises(UserError, match=message):
        statistics.refuse_non_finite(lambda: "here")
    statistics.add(replace(micro_batch(random_micro_batch, 1, step=4), value_sum=torch.tensor(math.nan)))
    with pytest.raises(UserError, match=r"^step 5: the loss of the value head on rank 0 is not finite"):
        statistics.refuse_non_finite(lambda: "here")


def test_an_auxiliary_loss_is_a_mean_over_steps(processes, random_micro_batch):
    statistics = MetricAccumulator(HORIZON, KINDS, processes)
    for share in (0.25, 0.5, 0.75, 1.0):  # two micro-batches a step: shares of each step's mean
        statistics.add(replace(micro_batch(random_micro_batch, 1), auxiliary=torch.tensor(share)))
    assert statistics.read(2)["train/auxiliary_loss"] == pytest.approx(1.25)
