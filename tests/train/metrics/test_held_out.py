import math
from dataclasses import replace

import pytest
import torch
from ranks_that_measure import measure

from ranks import on_ranks
from wmtp_core import RandomWeighting, Rho1Weighting, UniformWeighting
from wmtp_train.metrics.held_out import auc, evaluate
from wmtp_train.step import MicroBatchLoss

KINDS = ("hex", "shuffled")
HORIZON = 3


def auc_by_pairs(scores, positive):
    """The definition: over all pairs of a positive and a negative, the share won, ties half."""
    won = [
        1.0 if good > bad else 0.5 if good == bad else 0.0
        for good, is_good in zip(scores, positive, strict=True)
        if is_good
        for bad, is_bad in zip(scores, positive, strict=True)
        if not is_bad
    ]
    return sum(won) / len(won)


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_auc_counts_won_pairs_and_halves_ties(levels, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (40,), generator=draw).float() - levels / 2
    positive = torch.rand(40, generator=draw) < 0.3
    assert auc(scores, positive) == pytest.approx(auc_by_pairs(scores.tolist(), positive.tolist()))


def test_auc_of_perfect_and_inverted_orders():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    good = torch.tensor([False, False, True, True])
    assert auc(scores, good) == 1.0
    assert auc(-scores, good) == 0.0


@pytest.mark.parametrize("positive", [True, False])
def test_auc_of_one_class_is_undefined(positive):
    assert math.isnan(auc(torch.tensor([1.0, 2.0]), torch.tensor([positive, positive])))


def brute_force(micro_batches, weighting):
    """Every figure by loops over single targets and documents."""
    ce = [[] for _ in range(HORIZON)]
    right, kept = [[] for _ in range(HORIZON)], [[] for _ in range(HORIZON)]
    chances = [[] for _ in range(HORIZON)]
    clean_ce = [[] for _ in range(HORIZON)]
    excess, kind_of, kinds = [], [], [[0, 0] for _ in range(len(KINDS) + 1)]
    values, is_good = [], []
    for batch, output, signals in micro_batches:
        weights = weighting.plan(signals).weights(output.ce, output.values)
        rows, length = batch.input_ids.shape
        for b in range(rows):
            for t in range(length):
                last = t == length - 1 or batch.document_ids[b, t] != batch.document_ids[b, t + 1]
                if last and not math.isnan(batch.rewards[b, t]):
                    values.append(output.values[b, t].item())
                    is_good.append(batch.rewards[b, t].item() == 1)
                for h in range(HORIZON):
                    if not signals.valid[b, t, h]:
                        continue
                    loss, kind = output.ce[b, t, h].item(), int(batch.token_labels[b, t + h + 1])
                    ce[h].append(loss)
                    right[h].append(output.predicted[b, t, h] == batch.labels[b, t + h + 1])
                    drafts = [(output.predicted[b, t, j], output.predicted[b, t + j, 0]) for j in range(1, h + 1)]
                    kept[h].append(all(draft == verified for draft, verified in drafts))
                    chances[h].append(math.prod(output.overlap[b, t, 1 : h + 1].tolist()))
                    if kind == 0:
                        clean_ce[h].append(loss)
                    if h >= 1:
                        excess.append(loss - batch.reference_ce[b, t + h + 1].item())
                        kind_of.append(kind)
                        kinds[kind][0] += 1
                        kinds[kind][1] += bool(weights[b, t, h])
    metrics = {f"ce/head_{h}": sum(ce[h]) / len(ce[h]) for h in range(HORIZON)}
    metrics |= {f"accuracy/head_{h}": sum(right[h]).item() / len(right[h]) for h in range(HORIZON)}
    acceptance = [sum(kept[h]) / len(kept[h]) for h in range(1, HORIZON)]
    assert 0 < acceptance[1] < acceptance[0] < 1
    metrics |= {f"acceptance/head_{h}": rate for h, rate in enumerate(acceptance, start=1)}
    metrics["tokens_per_forward"] = 1 + sum(acceptance)
    sampled = [sum(chances[h]) / len(chances[h]) for h in range(1, HORIZON)]
    metrics |= {f"sampled_acceptance/head_{h}": rate for h, rate in enumerate(sampled, start=1)}
    metrics["sampled_tokens_per_forward"] = 1 + sum(sampled)
    metrics |= {f"clean_ce/head_{h}": sum(clean_ce[h]) / len(clean_ce[h]) for h in range(HORIZON)}
    if any(targets != selected for targets, selected in kinds):  # keeping everything is no selection
        metrics["noise/precision"] = kinds[0][1] / sum(selected for _, selected in kinds)
        metrics["noise/recall"] = metrics["noise/kept/clean"] = kinds[0][1] / kinds[0][0]
        for kind, (targets, selected) in zip(KINDS, kinds[1:], strict=True):
            metrics[f"noise/kept/{kind}"] = selected / targets
            metrics[f"noise/precision/{kind}"] = kinds[0][1] / (kinds[0][1] + selected)
    metrics["excess_auc"] = auc_by_pairs(excess, [kind == 0 for kind in kind_of])
    for number, name in enumerate(KINDS, start=1):
        compared = [i for i, kind in enumerate(kind_of) if kind in (0, number)]
        metrics[f"excess_auc/{name}"] = auc_by_pairs([excess[i] for i in compared], [kind_of[i] == 0 for i in compared])
    metrics["value_auc"] = auc_by_pairs(values, is_good)
    return metrics


@pytest.fixture
def evaluate_all(processes, answers):
    def run(micro_batches, weighting, kinds=KINDS):
        step = answers(micro_batches, weighting, processes)
        return evaluate(step, [batch for batch, _, _ in micro_batches], 0, kinds)

    return run


@pytest.mark.parametrize("weighting", [UniformWeighting(), Rho1Weighting(0.5)])
def test_figures_are_those_of_a_loop_over_every_target(evaluate_all, random_micro_batch, weighting):
    micro_batches = [random_micro_batch(seed, HORIZON) for seed in range(3)]
    assert evaluate_all(micro_batches, weighting) == pytest.approx(brute_force(micro_batches, weighting), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_find_the_figures_of_both_together(random_micro_batch, tmp_path):
    everything = [random_micro_batch(seed) for seed in range(4)]
    _, output, inputs = everything[0]
    nothing = MicroBatchLoss(*torch.zeros(4), None, inputs, output.ce, output.ce, torch.zeros_like(output.ce))
    jobs = [
        {"losses": [nothing], "steps": 1, "bad_loss": nothing, "evaluation": everything[rank::2]} for rank in (0, 1)
    ]
    ranks = on_ranks(tmp_path, 2, measure, tmp_path, jobs)
    expected = brute_force(everything, RandomWeighting(0.5, "sequence"))
    assert ranks[0]["evaluation"] == pytest.approx(expected, rel=1e-5)
    assert ranks[1]["evaluation"] == pytest.approx(expected, rel=1e-5)
    assert [rank["before_me"] for rank in ranks] == ["", "0"]  # rank0_first
    assert [rank["of_rank_0"] for rank in ranks] == ["found by 0"] * 2
    assert not any("error" in rank for rank in ranks)


def test_a_set_without_labels_or_values_has_losses_only(evaluate_all, random_micro_batch):
    batch, output, signals = random_micro_batch(0, HORIZON)
    batch, signals = (
        replace(batch, token_labels=None, rewards=None),
        replace(signals, token_labels=None, reference_ce=None),
    )
    metrics = evaluate_all([(batch, output, signals)], UniformWeighting(), kinds=())
    predictions = {f"accuracy/head_{h}" for h in range(HORIZON)}
    predictions |= {"tokens_per_forward", "sampled_tokens_per_forward"}
    predictions |= {f"{name}/head_{h}" for name in ("acceptance", "sampled_acceptance") for h in range(1, HORIZON)}
    assert metrics.keys() == {f"ce/head_{h}" for h in range(HORIZON)} | predictions


def test_a_single_head_drafts_nothing(evaluate_all, random_micro_batch):
    metrics = evaluate_all([random_micro_batch(0, horizon=1)], UniformWeighting())
    assert {"ce/head_0", "accuracy/head_0"} <= metrics.keys()
    assert not {name for name in metrics if "acceptance" in name or "per_forward" in name}


def test_a_labelled_corpus_needs_no_reference(evaluate_all, random_micro_batch):
    batch, output, signals = random_micro_batch(0, HORIZON)
    metrics = evaluate_all([(batch, output, replace(signals, reference_ce=None))], RandomWeighting(0.5))
    assert "excess_auc" not in metrics
    assert "noise/recall" in metrics


def test_the_padding_of_the_last_batch_does_not_count(evaluate_all, random_micro_batch):
    batch, output, signals = random_micro_batch(0, HORIZON)
    padded_batch, padded_output, padded_signals = random_micro_batch(1, HORIZON)
    padded_signals.valid[:] = False
    padded_output.ce[:] = 0
    padded_batch.rewards[:] = math.nan
    alone = evaluate_all([(batch, output, signals)], UniformWeighting())
    both = [(batch, output, signals), (padded_batch, padded_output, padded_signals)]
    assert evaluate_all(both, UniformWeighting()) == pytest.approx(alone)
