"""Losses and gradients on the device against a dense computation in float64 on the CPU, chunk by chunk of logits."""

import importlib.util
import os

import pytest
import torch

import wmtp_core.losses.fused
from wmtp_core import GradientHint, linear_cross_entropy
from wmtp_core.losses import compiled_chunk  # noqa: F401 (for what is derived in it)
from wmtp_core.losses.distillation import DistilledLogits
from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.logits_chunk import ChunkedLogits

if importlib.util.find_spec("triton") is not None:
    from wmtp_core.losses import triton_chunk  # noqa: F401

pytestmark = pytest.mark.cuda
ON_GPU = os.environ.get("WMTP_TEST_DEVICE", "cuda") == "cuda"
POSITIONS, HEADS, ROWS = 700 if ON_GPU else 150, 4, 512
CHUNK = 200 if ON_GPU else 20  # interpreted kernels take long
# Wider than a kernel's tiles, with and without round numbers: Triton compiles other code for each.
SHAPES = {"odd": (200, 9001), "round": (256, 8192)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CAPPED = LogitTransform(0.5, 15.0)
HINTS = {
    "right": lambda weights, positions, ce: weights[positions],
    "everything": lambda weights, positions, ce: torch.ones_like(ce),
    "nothing": lambda weights, positions, ce: torch.zeros_like(ce),
    "the others": lambda weights, positions, ce: (weights[positions] == 0).float(),
    "of another scale": lambda weights, positions, ce: 3 * weights[positions],
    "by the losses": lambda weights, positions, ce: (ce > ce.median()).float(),
}


class Hint:
    def __init__(self, rule, weights, share, wrong):
        self.rule, self.weights, self.share, self.wrong = rule, weights, share, wrong

    def __call__(self, positions, ce):
        return self.rule(self.weights, positions, ce)


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch):
    monkeypatch.setattr(wmtp_core.losses.fused, "rows_per_chunk", lambda weight: ROWS)


def problem(device, dtype, shape="odd"):
    width, vocabulary = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS * HEADS, width, generator=draw).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=draw) / 8).to(device, dtype).requires_grad_()
    targets = torch.randint(vocabulary, (POSITIONS * HEADS,), generator=draw)
    targets[torch.rand(len(targets), generator=draw) < 0.2] = -100
    weights = (torch.rand(POSITIONS, HEADS, generator=draw) < 0.6).float()
    return hidden, weight, targets.to(device), weights.to(device)


def dense(hidden, weight, targets, gradient, transform):
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in (hidden, weight)]
    logits = transform(exact[0] @ exact[1].T)
    ce = torch.nn.functional.cross_entropy(logits, targets.cpu(), reduction="none")
    ce.backward(gradient.double().cpu())
    return [ce.detach(), exact[0].grad, exact[1].grad]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transform", [LogitTransform(), CAPPED], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hint", [None, *HINTS])
def test_losses_and_gradients(device, relative_error, hint, dtype, transform, shape):
    hidden, weight, targets, weights = problem(device, dtype, shape)
    per_head = 1 / torch.tensor([400.0, 300.0, 200.0, 100.0], device=device)
    gradient = (weights * per_head).flatten()
    expected = dense(hidden, weight, targets, gradient, transform)
    # With nothing foreseen to be wrong, all that is wrong is left to the kernels that count it themselves.
    for share, wrong in ((1.0, 0.0), (0.6, 0.05)) if hint else ((1.0, 0.0),):
        hidden.grad = weight.grad = None
        rule = None if hint is None else GradientHint(Hint(HINTS[hint], weights, share, wrong), per_head)
        ce = linear_cross_entropy(hidden, weight, targets, hint=rule, transform=transform)
        ce.backward(gradient)
        for name, found, exact in zip(
            ("losses", "hidden", "weight"), (ce, hidden.grad, weight.grad), expected, strict=True
        ):
            assert relative_error(found, exact) <= TOLERANCE[dtype], (name, share)


def test_a_loss_that_is_not_finite_spoils_no_other_row(device, relative_error):
    hidden, weight, targets, weights = problem(device, torch.float32)
    weights[3] = 0
    gradient = weights.flatten()
    expected = dense(hidden, weight, targets, gradient, LogitTransform())
    with torch.no_grad():
        hidden[3 * HEADS : 4 * HEADS] = float("inf")
    rule = GradientHint(Hint(HINTS["everything"], weights, 1.0, 0.0), torch.ones(HEADS, device=device))
    linear_cross_entropy(hidden, weight, targets, hint=rule).backward(gradient)
    assert relative_error(weight.grad, expected[2]) <= TOLERANCE[torch.float32]
    assert relative_error(hidden.grad, expected[1]) <= TOLERANCE[torch.float32]


def kernels():
    """Every way to form a chunk of logits for a cross-entropy."""
    found = [ChunkedLogits]
    for kind in found:
        found.extend(other for other in kind.__subclasses__() if other is not DistilledLogits)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [False, True], ids=["all rows", "kept rows"])
@pytest.mark.parametrize("transform", [LogitTransform(), CAPPED], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("kind", kernels(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_forms_the_same_chunk(device, relative_error, shape, kind, transform, kept, dtype):
    hidden, weight, targets, _ = (tensor.detach() for tensor in problem(device, dtype, shape))
    hidden, targets = hidden[:CHUNK], targets[:CHUNK].clamp(min=0)
    rows = torch.arange(0, CHUNK, 3, device=device) if kept else None
    wanted = torch.linspace(0.1, 1, CHUNK if rows is None else len(rows), device=device)
    chunk = kind(weight, 256, transform).form(hidden, targets)
    found = [chunk.losses.clone(), chunk.gradients(rows, wanted).clone()]
    logits = (hidden.double().cpu() @ weight.double().cpu().T).requires_grad_()
    ce = torch.nn.functional.cross_entropy(transform(logits), targets.cpu(), reduction="none")
    of_all = torch.zeros(CHUNK, dtype=torch.float64)
    of_all[slice(None) if rows is None else rows.cpu()] = wanted.double().cpu()
    ce.backward(of_all)
    gradient = logits.grad if rows is None else logits.grad[rows.cpu()]
    assert relative_error(found[0], ce) <= TOLERANCE[dtype]
    assert relative_error(found[1], gradient) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_inputs_give_the_same_bits(device, dtype):
    hidden, weight, targets, weights = problem(device, dtype)
    found = []
    for wrong in (0.05, 0.0, 0.05, 0.0):
        hidden.grad = weight.grad = None
        rule = GradientHint(Hint(HINTS["by the losses"], weights, 0.6, wrong), torch.ones(HEADS, device=device))
        ce = linear_cross_entropy(hidden, weight, targets, hint=rule)
        ce.backward(weights.flatten())
        found.append((ce.detach(), hidden.grad, weight.grad))
    for one, other in zip((*found[0], *found[1]), (*found[2], *found[3]), strict=True):
        assert torch.equal(one, other)
