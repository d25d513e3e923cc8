"""Hints decide what the fused loss costs, and never what it gives."""

import pytest
import torch
from fused_problems import HEADS, VOCABULARY, WIDTH, Hint, as_if_on_accelerator, assert_close, example

from wmtp_core import GradientHint, UserError, linear_cross_entropy
from wmtp_lab.measure.host_waits import HostWaits


def hinted_example(seed):
    """As `example`, with 4 heads side by side, weights that keep some rows, and denominators."""
    hidden, weight, targets, _ = example(seed, rows=60)
    generator = torch.Generator().manual_seed(seed + 1)
    weights = torch.rand(15, HEADS, generator=generator) * (torch.rand(15, HEADS, generator=generator) < 0.6)
    return hidden, weight, targets, weights, torch.tensor([3.0, 7.0, 11.0, 2.0])


HINTS = {
    "right": lambda weights, positions, ce: weights[positions],
    "all": lambda weights, positions, ce: torch.ones_like(ce),
    "none": lambda weights, positions, ce: torch.zeros_like(ce),
    "a few wrong": lambda weights, positions, ce: torch.where(positions[:, None] % 5 == 0, 0.3, weights[positions]),
    "opposite": lambda weights, positions, ce: (weights[positions] == 0).float(),
    "another scale": lambda weights, positions, ce: -1e5 * weights[positions],
    "huge and odd": lambda weights, positions, ce: 1e6 * (positions[:, None] + ce),
    "not a number": lambda weights, positions, ce: ce * torch.nan,
    "as small as numbers get": lambda weights, positions, ce: 1e-40 * weights[positions],
    "too small to divide by": lambda weights, positions, ce: 1e-36 * weights[positions],
    "infinite": lambda weights, positions, ce: torch.inf * (weights[positions] - 0.1),
}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("hint", HINTS)
def test_gradients_are_exact_whatever_was_hinted(oracle, hint, share, seed):
    hidden, weight, targets, weights, counts = hinted_example(seed)
    rule = GradientHint(Hint(lambda positions, ce: HINTS[hint](weights, positions, ce), share), 1 / counts)
    ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
    grad = (0.37 * weights / counts).flatten()
    ce.backward(grad)
    expected = oracle.linear_cross_entropy(hidden.detach(), weight.detach(), targets.tolist(), grad.tolist())
    for actual, exact in zip((ce, hidden.grad, weight.grad), expected, strict=True):
        assert_close(actual, exact, relative=1e-6)


def test_a_right_hint_leaves_nothing_to_the_backward(witness):
    hidden, weight, targets, weights, counts = hinted_example(0)
    rule = GradientHint(Hint(lambda positions, ce: weights[positions]), 1 / counts)
    with witness() as forward:
        ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
    with witness() as backward:
        ce.backward((weights / counts).flatten() * 8)
    assert forward.rows_multiplied(VOCABULARY) == (targets != -100).sum()
    assert "mm" not in backward.names()
    assert "addmm_" not in backward.names()


def test_only_wrongly_hinted_rows_are_formed_again(witness):
    hidden, weight, targets, weights, counts = hinted_example(0)
    hinted = weights.clone()
    kept = ((weights.flatten() != 0) & (targets != -100)).nonzero().squeeze(-1)
    dropped = ((weights.flatten() == 0) & (targets != -100)).nonzero().squeeze(-1)
    hinted.view(-1)[kept[1:3]] = 0  # two missed
    hinted.view(-1)[dropped[:1]] = weights.max()  # and one kept in vain
    ce = linear_cross_entropy(
        hidden, weight, targets, hint=GradientHint(Hint(lambda positions, ce: hinted[positions]), 1 / counts)
    )
    with witness() as backward:
        ce.backward((weights / counts).flatten())
    assert backward.rows_multiplied(VOCABULARY) == 3


def test_a_second_backward_over_a_retained_graph_gives_the_same():
    hidden, weight, targets, weights, counts = hinted_example(0)
    rule = GradientHint(Hint(lambda positions, ce: torch.ones_like(ce)), 1 / counts)
    ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
    first = torch.autograd.grad((ce.view(15, HEADS) * weights / counts).sum(), (hidden, weight), retain_graph=True)
    second = torch.autograd.grad((ce.view(15, HEADS) * weights / counts).sum(), (hidden, weight))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_hint_for_other_heads_is_refused():
    hidden, weight, targets, _ = example()
    with pytest.raises(UserError, match="3 heads"):
        linear_cross_entropy(hidden, weight, targets, hint=GradientHint(Hint(lambda positions, ce: ce), torch.ones(3)))


def test_autocast_gives_the_gradients_of_its_dtype():
    hidden, weight, targets, grad = example()
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    linear_cross_entropy(*low, targets).backward(grad)
    with torch.autocast("cpu", torch.bfloat16):
        ce = linear_cross_entropy(hidden, weight, targets)
    ce.backward(grad)
    assert ce.dtype == hidden.grad.dtype == torch.float32
    assert torch.equal(hidden.grad, low[0].grad.float())
    assert torch.equal(weight.grad, low[1].grad.float())


def test_a_hint_of_another_scale_biases_no_bfloat16_gradient(oracle):
    """As a whole: each of them is rounded, but not all to the same side."""
    hidden, weight, targets, weights, counts = hinted_example(0)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    rule = GradientHint(Hint(lambda positions, ce: weights[positions]), 3 / counts)
    grad = (weights / counts).flatten()  # a third of what was hinted
    linear_cross_entropy(hidden, weight, targets, hint=rule).backward(grad)
    exact = oracle.linear_cross_entropy(
        hidden.detach().double(), weight.detach().double(), targets.tolist(), grad.tolist()
    )[1]
    gradient = hidden.grad.double().numpy()
    assert abs((gradient * exact).sum() / (exact * exact).sum() - 1) < 5e-4


def test_float16_is_not_hinted():
    hidden, weight, targets, weights, counts = hinted_example(0)
    hidden, weight = (x.detach().half().requires_grad_() for x in (hidden, weight))
    rule = GradientHint(Hint(lambda positions, ce: weights[positions]), 1e-5 / counts)
    linear_cross_entropy(hidden, weight, targets, hint=rule).backward((weights / counts).flatten())
    hinted = hidden.grad.clone()
    hidden.grad = None
    linear_cross_entropy(hidden, weight, targets).backward((weights / counts).flatten())
    assert torch.equal(hinted, hidden.grad)


@pytest.mark.usefixtures("on_accelerator")
def test_no_more_than_the_share_is_formed_ahead(witness):
    hidden, weight, targets, _, counts = hinted_example(0)
    rule = GradientHint(Hint(lambda positions, ce: torch.ones_like(ce), share=0.2), 1 / counts)
    with witness() as forward:
        linear_cross_entropy(hidden, weight, targets, hint=rule)
    formed = sum(shapes[0][0] for name, shapes in forward.calls if name == "mm" and shapes[1] == (VOCABULARY, WIDTH))
    rows = forward.rows_multiplied(VOCABULARY)
    assert 0 < formed <= 0.2 * rows + rows**0.5 / 2 + 1


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("hint", ["right", "a few wrong", "opposite"])
@pytest.mark.parametrize(("triton", "waits"), [(True, []), (False, ["_local_scalar_dense"])])
def test_the_host_waits_for_nothing(monkeypatch, set_rows_per_chunk, hint, share, triton, waits):
    """Without Triton once, for the number of rows that are wrong beyond those which were foreseen."""
    set_rows_per_chunk(7)
    as_if_on_accelerator(monkeypatch, True, triton)
    hidden, weight, targets, weights, counts = hinted_example(0)
    rule = GradientHint(Hint(lambda positions, ce: HINTS[hint](weights, positions, ce), share), 1 / counts)
    grad = (weights / counts).flatten()
    with torch.compiler.set_stance("force_eager"), HostWaits([hidden, weight, targets, grad, weights, counts]) as found:
        ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
        assert found.found == []
        ce.backward(grad)
    assert [wait.operation for wait in found.found] == waits


@pytest.mark.parametrize("strided", ["hidden", "weight"])
def test_rows_beyond_the_foreseen_of_strided_inputs(oracle, monkeypatch, strided):
    as_if_on_accelerator(monkeypatch, True, triton=True)
    hidden, weight, targets, weights, counts = hinted_example(0)
    hidden, weight = (
        tensor.detach().T.contiguous().T.requires_grad_() if name == strided else tensor
        for name, tensor in (("hidden", hidden), ("weight", weight))
    )
    rule = GradientHint(Hint(lambda positions, ce: HINTS["a few wrong"](weights, positions, ce), wrong=0.0), 1 / counts)
    grad = (weights / counts).flatten()
    linear_cross_entropy(hidden, weight, targets, hint=rule).backward(grad)
    expected = oracle.linear_cross_entropy(hidden.detach(), weight.detach(), targets.tolist(), grad.tolist())
    for actual, exact in zip((hidden.grad, weight.grad), expected[1:], strict=True):
        assert_close(actual, exact, relative=1e-6)


def test_rows_beyond_the_foreseen_are_left_to_kernels_that_count_themselves(monkeypatch, witness):
    as_if_on_accelerator(monkeypatch, True, triton=True)
    hidden, weight, targets, weights, counts = hinted_example(0)
    for wrong, rows in ((0.0, 0), (0.1, 6), (1.0, 60)):
        rule = GradientHint(Hint(lambda positions, ce: weights[positions], wrong=wrong), 1 / counts)
        ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
        with witness() as backward:
            ce.backward((weights / counts).flatten())
        assert backward.rows_multiplied(VOCABULARY) == rows
