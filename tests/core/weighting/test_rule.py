"""What every rule keeps to (the controls included), and the baseline, rho1 and the critic."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from signals import Signals, hint_of, weights_of

from wmtp_core import (
    CriticWeighting,
    HeadWeighting,
    LabelledWeighting,
    RandomWeighting,
    Rho1Weighting,
    SoftmaxExcessWeighting,
    TopKWeighting,
    UniformWarmup,
    UniformWeighting,
    UserError,
    WeightPlan,
    mtp_targets,
    select_by_excess,
)

RULES = [
    UniformWeighting(),
    Rho1Weighting(0.3, "batch"),
    Rho1Weighting(0.6, "sequence"),
    CriticWeighting(),
    CriticWeighting(advantage="gae"),
    CriticWeighting(transform="exp"),
    CriticWeighting(transform="exp", advantage="gae", clip=1.5),
    UniformWarmup(Rho1Weighting(), 10),
    UniformWarmup(Rho1Weighting(), 3),
    Rho1Weighting(0.3, from_head=0),
    Rho1Weighting(0.3, "sequence", from_head=0),
    RandomWeighting(0.3, from_head=0),
    RandomWeighting(0.3, "batch"),
    RandomWeighting(0.6, "sequence"),
    SoftmaxExcessWeighting(),
    LabelledWeighting(),
]
NOTHING = {"reference_ce": None, "values": None, "token_labels": None}
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def example(seed, rows=3, length=9, horizon=4, density=0.8, step=3):
    """Signals of every kind over packed documents, some targets ignored."""
    rng = np.random.default_rng(seed)
    documents = (rng.random((rows, length)) < 0.2).cumsum(axis=1)
    valid = np.zeros((rows, length, horizon), dtype=bool)
    labelled = rng.random((rows, length)) < density
    for b, t, h in np.ndindex(*valid.shape):
        p = t + h + 1
        valid[b, t, h] = p < length and labelled[b, p] and documents[b, p] == documents[b, t]
    return Signals(
        ce=torch.tensor(rng.exponential(2, valid.shape) * valid).float(),
        valid=torch.tensor(valid),
        step=step,
        row_ids=torch.tensor(rng.permutation(1000)[:rows]),
        document_ids=torch.tensor(documents),
        reference_ce=torch.tensor(rng.exponential(2, (rows, length))).float(),
        values=torch.tensor(rng.standard_normal((rows, length))).float(),
        token_labels=torch.tensor(rng.integers(0, 3, (rows, length)) * rng.integers(0, 2, (rows, length))),
    )


def part(signals, start, end):
    """The signals of some of the rows."""
    fields = {field.name: getattr(signals, field.name) for field in dataclasses.fields(signals)}
    return Signals(**{k: v[start:end] if isinstance(v, torch.Tensor) else v for k, v in fields.items()})


@every_rule
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_finite_not_negative_and_zero_where_not_valid(rule, seed):
    signals = example(seed)
    weights = weights_of(rule, signals)
    assert (weights.dtype, weights.shape, weights.requires_grad) == (torch.float32, signals.valid.shape, False)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert (weights[~signals.valid] == 0).all()
    assert weights.any()


@every_rule
@pytest.mark.parametrize(("rows", "length", "horizon", "density"), [(2, 6, 3, 0.0), (1, 1, 2, 1.0), (2, 5, 1, 1.0)])
def test_nothing_valid_one_token_and_one_head(rule, rows, length, horizon, density):
    signals = example(0, rows, length, horizon, density)
    weights = weights_of(rule, signals)
    assert weights.isfinite().all()
    assert (weights[~signals.valid] == 0).all()
    if horizon == 1 and getattr(rule, "from_head", 1) == 1:
        torch.testing.assert_close(weights.sum(), signals.valid.sum().float())


@every_rule
def test_the_same_signals_give_the_same_bits_and_are_left_alone(rule):
    signals, twin = example(0), example(0)
    assert torch.equal(weights_of(rule, signals), weights_of(rule, signals))
    for field in dataclasses.fields(signals):
        if isinstance(getattr(signals, field.name), torch.Tensor):
            assert torch.equal(getattr(signals, field.name), getattr(twin, field.name)), field.name


@every_rule
def test_what_stands_at_invalid_targets_does_not_matter(rule):
    signals = example(0)
    poisoned = dataclasses.replace(signals, ce=signals.ce.masked_fill(~signals.valid, float("nan")))
    assert torch.equal(weights_of(rule, poisoned), weights_of(rule, signals))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    horizon=st.integers(2, 5),
    density=st.sampled_from([0.0, 0.2, 0.8, 1.0]),
)
def test_selected_counts_are_what_is_selected(seed, rows, length, horizon, density):
    signals = example(seed, rows, length, horizon, density)
    for rule in RULES:
        counts = rule.plan(signals.inputs).counts
        assert counts.dtype == torch.int64
        assert torch.equal(counts, (weights_of(rule, signals) != 0).sum(dim=(0, 1))), rule


@pytest.mark.parametrize(
    "rule",
    [UniformWeighting(), CriticWeighting(), CriticWeighting(advantage="gae"), SoftmaxExcessWeighting()],
    ids=str,
)
def test_weights_sum_to_the_number_of_valid_heads_at_every_position(rule):
    signals = example(1)
    weights = weights_of(rule, signals)
    torch.testing.assert_close(weights.sum(dim=-1), signals.valid.sum(dim=-1).float())


def test_uniform_is_one_on_every_valid_target():
    signals = example(0)
    assert torch.equal(weights_of(UniformWeighting(), signals), signals.valid.float())


@pytest.mark.parametrize("scope", ["batch", "sequence"])
def test_rho1_is_the_top_excess(scope):
    signals = example(0)
    expected = select_by_excess(signals.ce, signals.reference_ce, signals.valid, 0.3, scope)
    assert torch.equal(weights_of(Rho1Weighting(0.3, scope), signals), expected)


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("rule", [Rho1Weighting, RandomWeighting])
def test_from_head_0_selects_there_as_on_any_other_head(rule, scope):
    """Head 0 is chosen as it would be as the second of two heads, and the others as they always are."""
    signals = example(0)
    selecting = weights_of(rule(0.3, scope, from_head=0), signals)
    assert torch.equal(selecting[..., 1:], weights_of(rule(0.3, scope), signals)[..., 1:])
    kept, valid = (part[..., 0].sum(dim=() if scope == "batch" else 1) for part in (selecting, signals.valid))
    assert torch.equal(kept, 1 + (0.3 * (valid - 1) + 1e-9).floor())
    if rule is Rho1Weighting:
        excess = (signals.ce[..., 0] - signals.reference_ce.roll(-1, dims=1)).where(signals.valid[..., 0], -torch.inf)
        lowest_kept = excess.where(selecting[..., 0] != 0, torch.inf).amin(dim=None if scope == "batch" else 1)
        highest_left = excess.where(selecting[..., 0] == 0, -torch.inf).amax(dim=None if scope == "batch" else 1)
        assert (lowest_kept >= highest_left).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("advantage", ["delta", "gae"])
def test_critic_softmax_equals_float64(oracle, seed, advantage):
    signals = example(seed)
    rule = CriticWeighting(discount=0.9, temperature=0.5, advantage=advantage, gae_lambda=0.8)
    np.testing.assert_allclose(
        weights_of(rule, signals).numpy(),
        oracle.softmax_weights(critic_scores(oracle, signals, rule), signals.valid.numpy(), 0.5),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("beta", "clip"), [(1.0, 5.0), (0.5, 1.2), (3.0, 100.0)])
def test_critic_exp_equals_float64_and_has_mean_1(oracle, seed, beta, clip):
    signals = example(seed)
    rule = CriticWeighting(transform="exp", beta=beta, clip=clip)
    weights = weights_of(rule, signals)
    expected = oracle.exponential_weights(critic_scores(oracle, signals, rule), signals.valid.numpy(), beta, clip)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[signals.valid].mean(), torch.tensor(1.0))


def critic_scores(oracle, signals, rule):
    documents = signals.document_ids.tolist()
    advantages = oracle.differences(signals.values, rule.discount, documents)
    if rule.advantage == "gae":
        advantages = oracle.gae(advantages, rule.discount, rule.gae_lambda, documents)
    return oracle.to_heads(advantages, signals.valid.shape[-1])


def test_the_defaults_of_the_critic_are_those_of_the_design():
    rule = CriticWeighting()
    assert (rule.discount, rule.temperature, rule.advantage, rule.transform) == (0.95, 0.7, "delta", "softmax")
    assert Rho1Weighting() == Rho1Weighting(k_percent=0.6, scope="batch")
    assert SoftmaxExcessWeighting().temperature == 0.7


@pytest.mark.parametrize("transform", ["softmax", "exp"])
def test_a_token_that_added_more_value_weighs_more(transform):
    signals = example(0, rows=1, length=4, horizon=3, density=1.0)
    values = torch.tensor([[0.0, 0.0, 1.0, 0.0]])  # token 2 added 1, token 3 took it away
    _, valid = mtp_targets(torch.ones(1, 4, dtype=torch.int64), 3)
    signals = dataclasses.replace(signals, values=values, document_ids=None, valid=valid)
    weights = weights_of(CriticWeighting(transform=transform), signals)[0]
    assert weights[0, 1] > weights[0, 0] > weights[0, 2]


@pytest.mark.parametrize("transform", ["softmax", "exp"])
@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
def test_equal_advantages_are_the_baseline(transform, value):
    signals = example(0)
    signals = dataclasses.replace(signals, values=torch.full_like(signals.values, value))
    weights = weights_of(CriticWeighting(transform=transform, discount=0.0), signals)
    torch.testing.assert_close(weights, signals.valid.float())


@pytest.mark.parametrize("transform", ["softmax", "exp"])
@pytest.mark.parametrize("value", [1e6, 1e30])
def test_huge_values_stay_finite(transform, value):
    signals = example(0)
    values = signals.values.clone()
    values[0, 4] = value
    weights = weights_of(CriticWeighting(transform=transform), dataclasses.replace(signals, values=values))
    assert weights.isfinite().all()
    assert weights.sum().item() == pytest.approx(signals.valid.sum().item(), rel=1e-5)


@pytest.mark.parametrize("rule", [CriticWeighting(), CriticWeighting(transform="exp"), Rho1Weighting()], ids=str)
def test_a_rule_with_a_warm_up_is_uniform_at_first_and_then_itself(rule):
    with_warm_up = UniformWarmup(rule, 5)
    signals = example(0, step=4)
    nothing_known = dataclasses.replace(signals, values=None, reference_ce=None)
    assert torch.equal(weights_of(with_warm_up, nothing_known), signals.valid.float())
    after = weights_of(with_warm_up, dataclasses.replace(signals, step=5))
    assert torch.equal(after, weights_of(rule, signals))
    assert not torch.equal(after, signals.valid.float())


@pytest.mark.parametrize("advantage", ["delta", "gae"])
def test_documents_of_the_critic_are_isolated(advantage):
    """Another document's values change nothing, to the bit."""
    signals = example(0, rows=1, length=12, density=1.0)
    ids = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    _, valid = mtp_targets(torch.ones_like(ids), 4, document_ids=ids)
    signals = dataclasses.replace(signals, document_ids=ids, valid=valid)
    others = torch.where(ids == 1, signals.values, signals.values * 7 - 3)
    rule = CriticWeighting(advantage=advantage)
    weights = weights_of(rule, signals)
    changed = weights_of(rule, dataclasses.replace(signals, values=others))
    assert torch.equal(weights[ids == 1], changed[ids == 1])
    assert not torch.equal(weights, changed)


@pytest.mark.slow
def test_two_ranks_whiten_as_one_process_does(over_two_ranks):
    both = example(0, rows=4)
    both.valid[:2, 3:] = False  # the first rank has fewer targets
    ranks = part(both, 0, 2), part(both, 2, 4)
    rules = [CriticWeighting(transform="exp"), CriticWeighting(transform="exp", advantage="gae"), CriticWeighting()]
    for rule, weights in zip(rules, over_two_ranks([(rule, ranks) for rule in rules]), strict=True):
        torch.testing.assert_close(torch.cat(weights), weights_of(rule, both), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        (Rho1Weighting(), "reference_ce"),
        (SoftmaxExcessWeighting(), "reference_ce"),
        (CriticWeighting(), "a value head"),
        (LabelledWeighting(), "token labels"),
    ],
    ids=str,
)
def test_a_rule_names_what_it_lacks(rule, missing):
    with pytest.raises(UserError, match=f"needs {missing}") as raised:
        weights_of(rule, dataclasses.replace(example(0), **NOTHING))
    assert "\n" not in str(raised.value)


def test_a_rule_or_a_plan_that_lacks_its_method_cannot_be_made():
    class Rule(HeadWeighting):
        pass

    class Plan(WeightPlan):
        counts = None

    for unfinished in (Rule, Plan):
        with pytest.raises(TypeError, match="abstract"):
            unfinished()


def test_counts_are_those_of_all_ranks():
    signals, others = example(0), example(1)
    everyone = torch.cat([signals.valid.sum(dim=1), others.valid.sum(dim=1)])
    inputs = dataclasses.replace(signals.inputs, valid_per_row=everyone)
    assert UniformWeighting().plan(inputs).counts.tolist() == everyone.sum(dim=0).tolist()
    expected = 1 + (0.3 * (everyone.sum(dim=0).double() - 1) + 1e-9).floor()
    assert Rho1Weighting(0.3).plan(inputs).counts[1:].tolist() == expected[1:].tolist()


def test_top_k_by_another_score_is_a_function():
    """A score of losses: the surest predictions first. Weights, counts and hint follow."""

    def surest(inputs):
        return lambda positions, ce: -ce

    signals = example(0, length=200)
    rule = TopKWeighting(surest, 0.25)
    weights = weights_of(rule, signals)
    for h in range(1, 4):
        valid = signals.valid[..., h]
        kept, left = signals.ce[..., h][weights[..., h] == 1], signals.ce[..., h][valid & (weights[..., h] == 0)]
        assert len(kept) == rule.plan(signals.inputs).counts[h] == 1 + int(0.25 * (int(valid.sum()) - 1) + 1e-9)
        assert kept.max() <= left.min()
    assert torch.equal(hint_of(rule, signals, 1), weights)
    assert (hint_of(rule, signals, 8) != weights).float().mean() < 0.05
