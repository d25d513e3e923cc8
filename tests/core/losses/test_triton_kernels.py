"""The kernels, interpreted on a CPU, against torch in float64, beside what test_fused.py tests through the loss."""

import pytest
import torch

from wmtp_core import LogitTransform

pytest.importorskip("triton", reason="Triton is for Linux")  # before what imports it
from wmtp_core.losses.compiled_chunk import CompiledChunkedLogits
from wmtp_core.losses.remaining_rows import add_remaining
from wmtp_core.losses.triton_chunk import TritonChunkedLogits
from wmtp_core.losses.triton_kernels import losses_of_logits, write_gradients

TRANSFORMS = [LogitTransform(), LogitTransform(2.0), LogitTransform(0.5, 3.0)]
# Of a norm: what rounding to the dtype allows.
PRECISION = {torch.float32: 1e-6, torch.bfloat16: 1.2e-2}


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("vocabulary", [7, 4096, 9001])
def test_a_chunk_equals_float64(vocabulary, dtype, transform):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 16, generator=draw).to(dtype)
    weight = torch.randn(vocabulary, 16, generator=draw).to(dtype)
    targets = torch.tensor([0, vocabulary - 1, 3, 3, 1, 5])
    for kept in (None, torch.tensor([0, 2, 5])):
        grad = torch.randn(6 if kept is None else 3, generator=draw)
        chunk = TritonChunkedLogits(weight, 6, transform).form(hidden, targets)
        logits = (hidden @ weight.T).double().requires_grad_()  # rounded to the dtype, as the kernels get them
        ce = torch.nn.functional.cross_entropy(transform(logits), targets, reduction="none")
        torch.testing.assert_close(chunk.losses.double(), ce.detach(), rtol=1e-6, atol=2e-6)
        rows = torch.arange(6) if kept is None else kept
        ce[rows].backward(grad.double())
        found = chunk.gradients(kept, grad)
        assert found.dtype == dtype
        assert relative(found, logits.grad[rows]) < PRECISION[dtype]


@pytest.mark.parametrize("dtype", PRECISION)
def test_rows_with_room_behind_them_give_the_same_bits(dtype):
    """What lies there is read and written with the rest, and counts for nothing."""
    draw = torch.Generator().manual_seed(0)
    room = torch.full((6, 9024), torch.nan, dtype=dtype)
    room[:, :9001] = plain = torch.randn(6, 9001, generator=draw).to(dtype)
    padded, targets, kept = room[:, :9001], torch.randint(9001, (6,), generator=draw), torch.arange(6)
    found, expected = (losses_of_logits(logits, targets, TRANSFORMS[2]) for logits in (padded, plain))
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    grads = torch.randn(6, generator=draw)
    for logits in (padded, plain):
        write_gradients(logits, logits, kept, targets, *expected[1:], grads, TRANSFORMS[2])
    assert torch.equal(padded, plain)
    assert (room[:, 9001:9008] == 0).all()


def test_losses_of_logits_far_apart():
    logits = torch.tensor([[0.0, -1e30, 300.0], [-200.0, -200.5, -300.0], [5.0, 5.0, 5.0]])
    losses, _, _ = losses_of_logits(logits, torch.tensor([2, 1, 0]), LogitTransform())
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([2, 1, 0]), reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", [-1, 9, 100])
def test_a_target_that_is_no_token_has_a_loss_that_is_no_number(target):
    losses, _, _ = losses_of_logits(torch.randn(3, 9), torch.tensor([0, target, 8]), LogitTransform())
    assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_seen_and_its_gradient_of_0_is_0(bad):
    hidden, weight = torch.ones(2, 4), torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    hidden[0, 0] = bad
    chunk = TritonChunkedLogits(weight, 2).form(hidden, torch.tensor([1, 1]))
    assert not chunk.losses[0].isfinite()
    assert chunk.losses[1].isfinite()
    gradients = chunk.gradients(None, torch.tensor([0.0, 1.0]))
    assert (gradients[0] == 0).all()
    assert gradients[1].isfinite().all()


@pytest.mark.parametrize("dtype", PRECISION)
def test_the_same_as_what_is_compiled(dtype):
    draw = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(9, 8, generator=draw).to(dtype), torch.randn(300, 8, generator=draw).to(dtype)
    targets = torch.randint(300, (9,), generator=draw)
    with torch.compiler.set_stance("force_eager"):
        chunks = [form(weight, 9).form(hidden, targets) for form in (TritonChunkedLogits, CompiledChunkedLogits)]
        kept, grad = torch.tensor([1, 4, 7]), torch.randn(3, generator=draw)
        mine, theirs = (chunk.gradients(kept, grad) for chunk in chunks)
    torch.testing.assert_close(chunks[0].losses, chunks[1].losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("count", [3, 4, 9, 70])
def test_remaining_rows_equal_float64(count, dtype, transform):
    """More rows than a tile has, a width and a vocabulary that are no multiples of it, and 4 rows that are done."""
    draw = torch.Generator().manual_seed(count)
    rows, width, vocabulary, done = 80, 70, 150, 4
    hidden = (torch.randn(rows, width, generator=draw) / 4).to(dtype)
    weight = torch.randn(vocabulary, width, generator=draw).to(dtype)
    targets, grad = torch.randint(vocabulary, (rows,), generator=draw), torch.randn(rows, generator=draw)
    order, hinted = torch.randperm(rows, generator=draw), torch.rand(rows, generator=draw) < 0.5
    grad_hidden, grad_weight = torch.ones(rows, width, dtype=dtype), torch.zeros(vocabulary, width)
    for _ in range(2):  # the weight's gradient is added up, and the hidden states' is written
        add_remaining(
            grad_hidden,
            grad_weight,
            hidden,
            weight,
            targets,
            grad,
            order,
            torch.tensor([count]),
            hinted,
            done,
            transform,
            torch.empty(30, vocabulary, dtype=dtype),
        )
    chosen = order[done : max(done, count)]
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = transform(exact[0][chosen] @ exact[1].T)
    (torch.nn.functional.cross_entropy(logits, targets[chosen], reduction="none") * grad[chosen]).sum().backward()
    written = torch.zeros(rows, dtype=torch.bool)
    written[chosen] = True
    written &= ~hinted
    assert (grad_hidden[~written] == 1).all()
    if count > done:
        assert relative(grad_hidden[written], exact[0].grad[written]) < PRECISION[dtype]
        assert relative(grad_weight / 2, exact[1].grad) < PRECISION[dtype]
    else:
        assert (grad_weight == 0).all()
