"""What is selected on the device is exactly what is selected on the CPU: there is nothing to round."""

from dataclasses import fields, replace

import pytest
import torch

from wmtp_core import CriticWeighting, RandomWeighting, Rho1Weighting, SoftmaxExcessWeighting, WeightingInputs
from wmtp_core.distributed_top_k import topk_mask_over_ranks
from wmtp_core.selection import num_selected, topk_mask

pytestmark = pytest.mark.cuda
ODD = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38])


def scores(levels):
    """Three rows of scores of so many levels: few of them, and nearly all are ties. Some are odd."""
    draw = torch.Generator().manual_seed(levels)
    found = torch.randint(levels, (3, 50_000), generator=draw) / 7.0 - 50
    found[:, ::97] = ODD[torch.randint(len(ODD), found[:, ::97].shape, generator=draw)]
    return found, torch.rand(found.shape, generator=draw) < 0.9


@pytest.mark.parametrize("levels", [3, 1000, 2**24])
def test_the_top_k(device, levels):
    on_cpu, valid = scores(levels)
    expected = topk_mask(on_cpu, valid, 0.6)
    assert torch.equal(topk_mask(on_cpu.to(device), valid.to(device), 0.6).cpu(), expected)
    by_counting = topk_mask_over_ranks(on_cpu.to(device), valid.to(device), lambda n: num_selected(n, 0.6), None)
    assert torch.equal(by_counting.cpu(), expected)


def inputs():
    draw = torch.Generator().manual_seed(0)
    shape = (4, 300)
    documents = (torch.randint(40, shape, generator=draw) == 0).long().cumsum(dim=1)
    valid = torch.rand((*shape, 4), generator=draw) < 0.9
    ce = torch.rand((*shape, 4), generator=draw).mul(4).where(valid, 0)
    reference = torch.randint(8, shape, generator=draw) / 2.0
    values = torch.rand(shape, generator=draw)
    found = WeightingInputs(
        valid=valid, step=3, row_ids=torch.arange(4), document_ids=documents, reference_ce=reference
    )
    return found, ce, values


def moved(found, device):
    tensors = {field.name: getattr(found, field.name) for field in fields(found)}
    return replace(found, **{name: x.to(device) for name, x in tensors.items() if isinstance(x, torch.Tensor)})


@pytest.mark.parametrize(
    "rule", [Rho1Weighting(0.6, scope) for scope in ("batch", "sequence")] + [RandomWeighting(0.6)]
)
def test_a_rule_that_selects(device, rule):
    found, ce, values = inputs()
    expected, plan = rule.plan(found), rule.plan(moved(found, device))
    assert torch.equal(plan.counts.cpu(), expected.counts)
    weights = plan.weights(ce.to(device), values.to(device))
    assert torch.equal(weights.cpu(), expected.weights(ce, values))
    assert 0 < weights.sum() < found.valid.sum()


@pytest.mark.parametrize("rule", [CriticWeighting(), CriticWeighting(transform="exp"), SoftmaxExcessWeighting()])
def test_a_rule_that_weighs(device, rule):
    found, ce, values = inputs()
    expected = rule.plan(found).weights(ce, values)
    weights = rule.plan(moved(found, device)).weights(ce.to(device), values.to(device))
    torch.testing.assert_close(weights.cpu(), expected, rtol=1e-5, atol=1e-6)
