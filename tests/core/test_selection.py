"""selection.py: excess loss, the exact top k, and what is reported of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import Signals

from wmtp_core import (
    Rho1Weighting,
    UserError,
    compute_mtp_selective_weights,
    compute_rho1_stats,
    excess_loss,
    select_by_excess,
)
from wmtp_core.selection import num_selected, topk_mask

NAN, INF = float("nan"), float("inf")
FRACTIONS = [1e-6, 0.001, 0.1, 0.25, 0.3, 0.5, 0.6, 0.7, 0.9, 0.999, 1.0]
quick = settings(max_examples=80, deadline=None, derandomize=True)


def example(rng, rows, length, horizon, levels=1000, density=0.8):
    """ce, reference_ce and validity. Values are multiples of 1/64, so differences are exact in float32; few `levels`
    make many ties."""
    ce = rng.integers(0, levels, (rows, length, horizon)) / 64
    reference_ce = rng.integers(0, levels, (rows, length)) / 64
    valid = rng.random((rows, length, horizon)) < density
    for h in range(horizon):
        valid[:, max(0, length - h - 1) :, h] = False  # beyond the row
    return torch.tensor(ce).float(), torch.tensor(reference_ce).float(), torch.tensor(valid)


def one_row(excess):
    """ce, reference_ce and validity of two heads whose excess at head 1 is the given row."""
    ce = torch.zeros(1, len(excess) + 2, 2)
    ce[0, : len(excess), 1] = torch.tensor(excess)
    valid = torch.zeros(ce.shape, dtype=torch.bool)
    valid[0, : len(excess)] = True
    return ce, torch.zeros(1, len(excess) + 2), valid


def selected_of(excess, k_percent):
    return select_by_excess(*one_row(excess), k_percent)[0, : len(excess), 1].tolist()


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    horizon=st.integers(2, 5),
    levels=st.sampled_from([1, 2, 5, 10000]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    k_percent=st.sampled_from(FRACTIONS),
    scope=st.sampled_from(["batch", "sequence"]),
)
def test_selection_equals_the_definition(oracle, seed, rows, length, horizon, levels, density, k_percent, scope):
    ce, reference_ce, valid = example(np.random.default_rng(seed), rows, length, horizon, levels, density)
    weights = select_by_excess(ce, reference_ce, valid, k_percent, scope)
    expected = oracle.select(ce.numpy(), reference_ce.numpy(), valid.numpy(), k_percent, scope)
    assert weights.dtype == torch.float32
    np.testing.assert_array_equal(weights.numpy(), expected)


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_a_single_head_keeps_everything(scope):
    """With H = 1 there is no later head to compare."""
    ce, reference_ce, valid = example(np.random.default_rng(0), 2, 5, horizon=1)
    assert torch.equal(select_by_excess(ce, reference_ce, valid, 0.1, scope), valid.float())


def test_excess_is_signed_and_indexed_by_target_position(oracle):
    ce, reference_ce, _ = example(np.random.default_rng(0), 2, 6, 3)
    expected = oracle.excess(ce.numpy(), reference_ce.numpy())
    within = ~np.isnan(expected)
    np.testing.assert_array_equal(excess_loss(ce, reference_ce).numpy()[within], expected[within])
    assert (expected[within] < 0).any()


def test_a_large_negative_excess_is_the_last_to_be_kept():
    assert selected_of([-9.0, 1.0, 0.0, 2.0], k_percent=0.5) == [0, 1, 0, 1]


def test_head_0_is_never_compared():
    ce, reference_ce, valid = example(np.random.default_rng(0), 3, 9, 4)
    ce[..., 0], reference_ce[:] = 0, 1000
    weights = select_by_excess(ce, reference_ce, valid, 1e-6)
    assert torch.equal(weights[..., 0], valid[..., 0].float())
    assert weights[..., 1:].sum(dim=(0, 1)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("k_percent", [i / 100 for i in range(1, 101)])
def test_count_is_exact_on_decimals(oracle, k_percent):
    counts = torch.arange(500)
    assert num_selected(counts, k_percent).tolist() == [oracle.top_count(n, k_percent) for n in range(500)]


@pytest.mark.parametrize("k_percent", FRACTIONS)
def test_agrees_with_the_quantile_on_distinct_values(k_percent):
    rng = np.random.default_rng(7)
    for n in range(1, 60):
        excess = rng.permutation(n) - n / 2
        classic = excess >= np.quantile(excess, 1 - k_percent) - 1e-6
        assert selected_of(excess.tolist(), k_percent) == classic.tolist()


@pytest.mark.parametrize("n", [1, 2, 10, 257])
@pytest.mark.parametrize("k_percent", FRACTIONS)
def test_all_equal_keeps_the_first_positions(oracle, n, k_percent):
    count = oracle.top_count(n, k_percent)
    assert selected_of([0.5] * n, k_percent) == [1] * count + [0] * (n - count)


def test_ties_go_to_the_lower_row_and_then_to_the_lower_position():
    ce, valid = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2, dtype=torch.bool)
    valid[:, :2, 1] = True
    ce[1, 0, 1] = 1.0
    weights = select_by_excess(ce, torch.zeros(2, 4), valid, 0.5)  # 2 of 4: the highest, and the first of three ties
    assert weights[..., 1].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]


def test_both_zeros_tie():
    assert selected_of([-0.0, 0.0, -0.0], k_percent=0.5) == [1, 1, 0]


@pytest.mark.parametrize(
    ("excess", "k_percent", "expected"),
    [
        ([1e30, 1.0, -1e30, 2.0], 0.5, [1, 0, 0, 1]),
        ([3e38, -3e38, 0.0], 0.5, [1, 0, 1]),
        ([INF, 0.0, -INF, 1.0], 0.5, [1, 0, 0, 1]),
        ([-INF, -INF, -INF], 1.0, [1, 1, 1]),
        ([-INF, -INF, -INF], 0.5, [1, 1, 0]),
        ([0.0, NAN, INF, 1.0], 0.1, [0, 1, 0, 0]),
        ([0.0, NAN, INF, NAN], 0.7, [0, 1, 1, 1]),
        ([NAN, NAN, NAN, NAN], 0.5, [1, 1, 0, 0]),
        ([NAN, -INF], 1.0, [1, 1]),
    ],
)
def test_extreme_values_keep_the_exact_count(excess, k_percent, expected):
    assert selected_of(excess, k_percent) == expected


@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_what_stands_at_invalid_targets_does_not_matter(junk, scope):
    ce, reference_ce, valid = example(np.random.default_rng(3), 3, 8, 4, density=0.5)
    expected = select_by_excess(ce, reference_ce, valid, 0.6, scope)
    assert torch.equal(select_by_excess(ce.masked_fill(~valid, junk), reference_ce, valid, 0.6, scope), expected)


def test_valid_minus_infinity_comes_before_anything_invalid():
    scores, valid = torch.tensor([[5.0, -INF, -INF, 5.0]]), torch.tensor([[False, False, True, False]])
    assert topk_mask(scores, valid, 1.0).tolist() == [[False, False, True, False]]


def test_scope_sequence_does_not_see_the_other_rows():
    ce, reference_ce, valid = example(np.random.default_rng(4), 4, 9, 4, levels=5)
    together = select_by_excess(ce, reference_ce, valid, 0.6, "sequence")
    alone = [select_by_excess(ce[b : b + 1], reference_ce[b : b + 1], valid[b : b + 1], 0.6) for b in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, select_by_excess(ce, reference_ce, valid, 0.6, "batch"))


def test_selection_has_no_gradient_and_leaves_its_inputs_alone():
    ce, reference_ce, valid = example(np.random.default_rng(5), 2, 6, 3)
    before = ce.clone(), reference_ce.clone(), valid.clone()
    assert not select_by_excess(ce.requires_grad_(), reference_ce, valid, 0.6).requires_grad
    assert all(torch.equal(a, b) for a, b in zip((ce, reference_ce, valid), before, strict=True))


def signals(ce, reference_ce, valid):
    row_ids = torch.arange(len(ce))
    return Signals(ce=ce, valid=valid, step=0, row_ids=row_ids, reference_ce=reference_ce)


@pytest.mark.slow
def test_two_ranks_select_as_one_process_does(over_two_ranks):
    """Uneven validity: one rank nearly empty, empty, or whole; and ties all over."""
    jobs, expected = [], []
    for seed, (first, second, levels) in enumerate(
        [(1.0, 1.0, 10000), (0.1, 0.9, 10000), (0.0, 0.7, 3), (0.8, 0.05, 3), (0.9, 0.5, 1), (0.0, 0.0, 3)]
    ):
        rng = np.random.default_rng(seed)
        ranks = [example(rng, 3, 10, 4, levels, density) for density in (first, second)]
        both = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
        for k_percent, scope in ((0.6, "batch"), (0.1, "batch"), (1.0, "batch"), (0.6, "sequence")):
            jobs.append((Rho1Weighting(k_percent, scope), tuple(signals(*rank) for rank in ranks)))
            expected.append(select_by_excess(*both, k_percent, scope))
    ce, reference_ce, valid = one_row([1.0, NAN, -INF, INF])
    jobs.append((Rho1Weighting(0.5), (signals(ce, reference_ce, valid), signals(-ce, reference_ce, valid))))
    expected.append(select_by_excess(torch.cat([ce, -ce]), reference_ce.repeat(2, 1), valid.repeat(2, 1, 1), 0.5))

    for weights, one_process in zip(over_two_ranks(jobs), expected, strict=True):
        assert torch.equal(torch.cat(weights), one_process)


def selective_example(rng, rows=3, length=9, horizon=4, vocabulary=6):
    """Logits drawn from three rows for the policy and two for the reference: ties are many, and exact."""
    policy = rng.standard_normal((3, vocabulary))[rng.integers(0, 3, (rows, length, horizon))]
    reference = rng.standard_normal((2, vocabulary))[rng.integers(0, 2, (rows, length))]
    labels = np.where(rng.random((rows, length)) < 0.2, -100, rng.integers(0, 2, (rows, length)))
    mask = (rng.random((rows, length)) < 0.9).astype(int)
    return tuple(torch.tensor(x).float() for x in (policy, reference)), (torch.tensor(labels), torch.tensor(mask))


@pytest.mark.parametrize("seed", range(8))
def test_selective_weights_and_statistics_equal_float64(oracle, seed):
    (policy, reference), (labels, mask) = selective_example(np.random.default_rng(seed))
    weights, stats = compute_mtp_selective_weights(policy, reference, labels, mask, k_percent=0.6)

    tokens, valid = oracle.targets(labels.numpy(), 4, mask.numpy())
    ce = oracle.cross_entropy(policy.numpy(), tokens)
    reference_ce = oracle.reference_cross_entropy(reference.numpy(), labels.numpy(), mask.numpy())
    expected = oracle.select(ce, reference_ce, valid, 0.6)
    excess = oracle.excess(ce, reference_ce)
    np.testing.assert_array_equal(weights.numpy(), expected)

    wanted = {
        "selection_ratio": expected.sum() / valid.sum(),
        "avg_heads_per_position": expected.sum() / valid[..., 0].sum(),
    }
    for h in range(4):
        wanted[f"head_{h}_count"] = expected[..., h].sum()
        wanted[f"head_{h}_ratio"] = expected[..., h].sum() / valid[..., h].sum()
        if h >= 1:
            wanted[f"head_{h}_excess_mean"] = excess[..., h][valid[..., h]].mean()
            wanted[f"head_{h}_threshold"] = excess[..., h][expected[..., h] == 1].min()
    assert stats.keys() == wanted.keys()
    for name, value in wanted.items():
        assert isinstance(stats[name], torch.Tensor)
        assert stats[name].shape == ()
        np.testing.assert_allclose(stats[name].item(), value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_selective_weights_are_those_of_the_losses_and_have_no_gradient():
    (policy, reference), (labels, mask) = selective_example(np.random.default_rng(0))
    weights, stats = compute_mtp_selective_weights(policy.requires_grad_(), reference, labels, mask)
    assert not weights.requires_grad
    assert not any(x.requires_grad for x in stats.values())


def test_selective_weights_when_nothing_is_valid():
    (policy, reference), (labels, mask) = selective_example(np.random.default_rng(0))
    weights, stats = compute_mtp_selective_weights(policy, reference, labels, mask * 0)
    assert not weights.any()
    assert {stats[f"head_{h}_threshold"].item() for h in (1, 2, 3)} == {INF}
    assert {value.item() for name, value in stats.items() if not name.endswith("threshold")} == {0}


def test_statistics_of_a_worked_example():
    valid = torch.tensor([[[1, 1], [1, 1], [1, 0], [0, 0]]], dtype=torch.bool)
    weights = torch.tensor([[[1.0, 0.0], [1.0, 0.5], [1.0, 9.0], [0.0, 9.0]]])  # what is not valid is not counted
    stats = {name: value.item() for name, value in compute_rho1_stats(weights, valid).items()}
    assert stats == {
        "head_0_count": 3, "head_0_ratio": 1, "head_1_count": 1, "head_1_ratio": 0.5,
        "selection_ratio": pytest.approx(0.8), "avg_heads_per_position": pytest.approx(4 / 3),
    }  # fmt: skip


def test_nothing_waits_for_the_device(witness):
    """No operation whose result the host must read: neither in the selection nor in its statistics."""
    (policy, reference), (labels, mask) = selective_example(np.random.default_rng(0))
    with witness() as seen:
        compute_mtp_selective_weights(policy, reference, labels, mask)
        select_by_excess(*example(np.random.default_rng(0), 2, 6, 3), 0.6, "sequence")
    assert "sort" in seen.names()
    assert not seen.names() & {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal"}


@pytest.mark.parametrize("k_percent", [0, 0.0, -0.1, 1.5, 1 + 1e-9, NAN, INF])
def test_a_fraction_out_of_bounds_is_refused(k_percent):
    ce, reference_ce, valid = example(np.random.default_rng(0), 2, 6, 3)
    (policy, reference), (labels, mask) = selective_example(np.random.default_rng(0))
    for refuse in (
        lambda: select_by_excess(ce, reference_ce, valid, k_percent),
        lambda: compute_mtp_selective_weights(policy, reference, labels, mask, k_percent),
        lambda: Rho1Weighting(k_percent),
    ):
        with pytest.raises(UserError, match=f"k_percent is {k_percent};") as raised:
            refuse()
        assert "\n" not in str(raised.value)


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match="'document'"):
        select_by_excess(*example(np.random.default_rng(0), 2, 6, 3), 0.6, "document")
