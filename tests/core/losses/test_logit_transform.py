"""Losses of logits that are scaled or soft-capped, against torch in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import wmtp_core.losses.fused
from wmtp_core import GradientHint, LogitTransform, linear_argmax, linear_cross_entropy
from wmtp_core.losses.hints import StaticHint

POSITIONS, HEADS, WIDTH, VOCABULARY = 12, 3, 8, 50
TRANSFORMS = [
    LogitTransform(scale=0.0625),
    LogitTransform(scale=3.0),
    LogitTransform(softcap=2.0),
    LogitTransform(0.7, 5.0),
]


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS * HEADS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (len(hidden),), generator=generator)
    targets[::5] = -100
    weights = torch.rand(1, POSITIONS, HEADS, generator=generator)
    weights *= torch.rand(weights.shape, generator=generator) < 0.6
    return hidden, weight, targets, weights


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("rows", [3, 6, 1000])
@pytest.mark.parametrize("hint", [None, "right", "all"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_values_and_gradients_equal_float64(transform, hint, rows, monkeypatch):
    monkeypatch.setattr(wmtp_core.losses.fused, "rows_per_chunk", lambda weight: rows)
    hidden, weight, targets, weights = example()
    hinted = {
        None: None,
        "right": GradientHint(StaticHint(weights), torch.ones(HEADS)),
        "all": GradientHint(StaticHint(torch.ones_like(weights)), torch.ones(HEADS)),
    }[hint]
    ce = linear_cross_entropy(hidden, weight, targets, hint=hinted, transform=transform)
    ce.backward(weights.flatten())
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    logits = exact[0] @ exact[1].T * transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    expected = cross_entropy(logits, targets, reduction="none")
    expected.backward(weights.flatten().double())
    pairs = [(ce, expected), (hidden.grad, exact[0].grad), (weight.grad, exact[1].grad)]
    for actual, right in pairs:
        assert actual.dtype == torch.float32
        assert (actual.double() - right).norm() <= 2e-6 * right.norm()


@pytest.mark.usefixtures("on_accelerator")
def test_bfloat16_logits_are_capped_in_float32():
    hidden, weight, targets, weights = example(torch.bfloat16)
    transform = LogitTransform(softcap=3.0)
    ce = linear_cross_entropy(hidden, weight, targets, transform=transform)
    ce.backward(weights.flatten())
    logits = (hidden @ weight.T).detach().double().requires_grad_()
    expected = cross_entropy(3 * torch.tanh(logits / 3), targets, reduction="none")
    expected.backward(weights.flatten().double())
    assert (ce.double() - expected).norm() <= 2e-6 * expected.norm()
    grad_hidden = logits.grad @ weight.detach().double()
    assert (hidden.grad.double() - grad_hidden).norm() <= 1e-2 * grad_hidden.norm()


def test_a_capped_logit_far_out_has_no_gradient():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    linear_cross_entropy(hidden, weight, torch.tensor([2]), transform=LogitTransform(softcap=2.0)).sum().backward()
    assert abs(hidden.grad[0, 0]) < 1e-6
    assert hidden.grad[0, 1] > 0


def test_the_most_probable_token_is_that_of_the_transformed_logits():
    hidden, weight = torch.tensor([[100.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert linear_argmax(hidden, weight).tolist() == [1, 1]
    capped = LogitTransform(softcap=1.0)
    assert linear_argmax(hidden, weight, capped).tolist() == [0, 1], "the first of two equal ones"
