"""controls.py: random, softmax-excess and labelled."""

import dataclasses

import numpy as np
import pytest
import torch
from signals import Signals, weights_of

from wmtp_core import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting, UserError
from wmtp_core.selection import num_selected


def example(seed=0, rows=4, length=64, horizon=4, density=0.8, step=0):
    rng = np.random.default_rng(seed)
    valid = rng.random((rows, length, horizon)) < density
    for h in range(horizon):
        valid[:, length - h - 1 :, h] = False
    return Signals(
        ce=torch.tensor(rng.exponential(2, valid.shape) * valid).float(),
        valid=torch.tensor(valid),
        step=step,
        row_ids=torch.tensor(rng.permutation(10000)[:rows]),
        reference_ce=torch.tensor(rng.exponential(2, (rows, length))).float(),
        token_labels=torch.tensor(rng.integers(0, 3, (rows, length))),
    )


def rows_of(signals, index):
    return Signals(ce=signals.ce[index], valid=signals.valid[index], step=signals.step, row_ids=signals.row_ids[index])


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_random_keeps_head_0_whole_and_an_exact_share_of_the_others(scope):
    signals = example()
    weights = weights_of(RandomWeighting(0.3, scope), signals)
    assert torch.equal(weights[..., 0], signals.valid[..., 0].float())
    assert ((weights == 0) | (weights == 1)).all()
    valid = signals.valid.sum(dim=1)
    if scope == "sequence":
        assert torch.equal(weights.sum(dim=1)[:, 1:].long(), num_selected(valid, 0.3)[:, 1:])
    else:
        assert torch.equal(weights.sum(dim=(0, 1))[1:].long(), num_selected(valid.sum(dim=0), 0.3)[1:])


def test_random_is_drawn_anew_for_each_step_seed_row_and_head():
    """Two independent draws of a half agree on half of their targets, within 5 standard deviations."""
    signals = example(rows=8, length=256, density=1.0)
    whole = signals.valid[..., 1] & signals.valid[..., 3]

    def draw(seed=0, step=0, shift=0, head=1):
        moved = dataclasses.replace(signals, step=step, row_ids=signals.row_ids + shift)
        return weights_of(RandomWeighting(0.5, "sequence", seed=seed), moved)[..., head][whole]

    draws = [draw(), draw(seed=1), draw(seed=-1), draw(step=1), draw(step=2**21), draw(shift=20000), draw(head=3)]
    assert torch.equal(draws[0], draw())
    for i in range(len(draws)):
        for other in draws[:i]:
            agreement = (draws[i] == other).double().mean().item()
            assert abs(agreement - 0.5) < 5 * 0.5 / whole.sum().item() ** 0.5


def test_random_draws_every_position_alike():
    """Over 400 steps each target is kept in 30 % of them, within 5 standard deviations."""
    signals = example(rows=2, length=32, density=1.0)
    draws = [weights_of(RandomWeighting(0.3), dataclasses.replace(signals, step=step)) for step in range(400)]
    later = signals.valid.clone()
    later[..., 0] = False
    valid = signals.valid.sum(dim=(0, 1))
    share = (num_selected(valid, 0.3) / valid).expand_as(later)[later]
    error = (torch.stack(draws).mean(dim=0)[later] - share).abs()
    assert error.max() < 5 * (0.3 * 0.7 / 400) ** 0.5


def test_random_of_a_row_depends_on_its_row_id_and_not_on_its_place():
    """scope sequence: however the rows are split and ordered, a row's draw is its own."""
    signals = example(rows=6)
    rule = RandomWeighting(0.4, "sequence", seed=7)
    whole = weights_of(rule, signals)
    for index in ([0], [5, 2], [4, 3, 2, 1, 0]):
        assert torch.equal(weights_of(rule, rows_of(signals, index)), whole[index])


def test_random_over_two_ranks_is_that_of_one_process(over_two_ranks):
    both = example(rows=6)
    both.valid[:3, 5:] = False  # the first rank has far fewer targets
    ranks = rows_of(both, slice(0, 3)), rows_of(both, slice(3, 6))
    rules = [RandomWeighting(k, scope, seed=3) for k in (0.1, 0.6) for scope in ("batch", "sequence")]
    for rule, weights in zip(rules, over_two_ranks([(rule, ranks) for rule in rules]), strict=True):
        assert torch.equal(torch.cat(weights), weights_of(rule, both)), rule


def test_random_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weights_of(RandomWeighting(), example())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("k_percent", [0, 1.5, float("nan")])
def test_random_refuses_a_fraction_out_of_bounds(k_percent):
    with pytest.raises(UserError, match="k_percent"):
        RandomWeighting(k_percent)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 10.0])
def test_softmax_excess_equals_float64(oracle, temperature):
    signals = example(rows=2, length=12)
    excess = oracle.excess(signals.ce.numpy(), signals.reference_ce.numpy())
    np.testing.assert_allclose(
        weights_of(SoftmaxExcessWeighting(temperature), signals).numpy(),
        oracle.softmax_weights(np.abs(excess), signals.valid.numpy(), temperature),
        rtol=1e-4,
        atol=1e-6,
    )


def test_softmax_excess_takes_the_excess_without_its_sign():
    signals = Signals(
        ce=torch.tensor([[[3.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]),
        valid=torch.tensor([[[True, True], [False, False], [False, False]]]),
        step=0,
        row_ids=torch.tensor([0]),
        reference_ce=torch.tensor([[0.0, 1.0, 3.0]]),  # excess +2 and −2
    )
    assert weights_of(SoftmaxExcessWeighting(), signals)[0, 0].tolist() == [1, 1]


def test_labelled_keeps_head_0_whole_and_the_clean_targets_of_the_others():
    signals = example(rows=2, length=12)
    noise = signals.token_labels.clone()
    weights = weights_of(LabelledWeighting(), signals)
    for b, t, h in np.ndindex(*weights.shape):
        kept = signals.valid[b, t, h] and (h == 0 or noise[b, t + h + 1] == 0)
        assert weights[b, t, h] == float(kept)
    assert torch.equal(signals.token_labels, noise)


def test_two_ranks_count_what_is_clean_on_both(over_two_ranks):
    both = example(rows=4)
    ranks = [
        dataclasses.replace(
            rows_of(both, list(range(start, start + 2))),
            token_labels=both.token_labels[start : start + 2],
            valid_per_row=both.valid.sum(dim=1),
        )
        for start in (0, 2)
    ]
    ((first, second),) = over_two_ranks([(LabelledWeighting(), ranks)], "counts")
    assert first.tolist() == second.tolist() == LabelledWeighting().plan(both.inputs).counts.tolist()
