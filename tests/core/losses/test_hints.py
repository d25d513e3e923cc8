"""hints.py: a hint over one chunk is the rule itself, and over many chunks it is nearly so."""

import dataclasses

import pytest
import torch
from signals import Signals, hint_of, weights_of

from wmtp_core import (
    CriticWeighting,
    GradientPlan,
    LabelledWeighting,
    RandomWeighting,
    Rho1Weighting,
    SoftmaxExcessWeighting,
    UniformWarmup,
    UniformWeighting,
    WeightPlan,
    mtp_targets,
)

ROWS, LENGTH, HORIZON = 4, 200, 4
KNOWN_AHEAD = [
    UniformWeighting(),
    CriticWeighting(),
    UniformWarmup(Rho1Weighting(), 9),
    UniformWarmup(CriticWeighting(), 3),
    RandomWeighting(),
    RandomWeighting(from_head=0),
    LabelledWeighting(),
]
BY_POSITION = [SoftmaxExcessWeighting()]


@pytest.fixture
def signals():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(9, (ROWS, LENGTH), generator=generator)
    labels[torch.rand(ROWS, LENGTH, generator=generator) < 0.2] = -100
    _, valid = mtp_targets(labels, HORIZON)
    return Signals(
        ce=torch.randn(ROWS, LENGTH, HORIZON, generator=generator).where(valid, 0),
        valid=valid,
        step=3,
        row_ids=torch.arange(ROWS),
        reference_ce=torch.randn(ROWS, LENGTH, generator=generator),
        values=torch.randn(ROWS, LENGTH, generator=generator),
        token_labels=torch.randint(3, (ROWS, LENGTH), generator=generator),
    )


@pytest.mark.parametrize("rule", KNOWN_AHEAD + BY_POSITION, ids=str)
@pytest.mark.parametrize("chunks", [1, 7])
def test_rules_that_compare_no_positions_know_their_weights(rule, chunks, signals):
    assert torch.equal(hint_of(rule, signals, chunks), weights_of(rule, signals))


@pytest.mark.parametrize("k_percent", [0.01, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("from_head", [0, 1])
def test_rho1_over_one_chunk_is_the_rule(k_percent, from_head, signals):
    rule = Rho1Weighting(k_percent, from_head=from_head)
    assert torch.equal(hint_of(rule, signals, 1), weights_of(rule, signals))


def test_rho1_over_many_chunks_is_nearly_the_rule(signals):
    rule = Rho1Weighting()
    weights, hint = weights_of(rule, signals), hint_of(rule, signals, 8)
    assert torch.equal(hint[..., 0], weights[..., 0])
    assert ((hint != 0) <= signals.valid).all()
    assert 0 < (hint != weights).float().mean() < 0.05


def test_a_head_without_targets_and_a_single_head(signals):
    rule = Rho1Weighting()
    nothing = dataclasses.replace(signals, valid=torch.zeros_like(signals.valid), ce=torch.zeros_like(signals.ce))
    assert not hint_of(rule, nothing, 3).any()
    single = dataclasses.replace(signals, valid=signals.valid[..., :1], ce=signals.ce[..., :1])
    assert torch.equal(hint_of(rule, single, 3), single.valid.float())


def test_a_plan_without_a_hint_says_so():
    class Plan(WeightPlan):
        counts = None

        def weights(self, ce, values=None):
            return (ce > 0).float()

    assert Plan().hint() is None
    assert GradientPlan(Plan(), torch.ones(4)).hint(None) is None
