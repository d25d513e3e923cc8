"""Distillation against float64: dense logits of both, autograd through the definitions, and where rows come from."""

import pytest
import torch
from fused_problems import VOCABULARY, WIDTH, Hint, assert_close

from wmtp_core import (
    Distillation,
    GradientHint,
    LogitTransform,
    UserError,
    linear_cross_entropy,
    linear_distillation,
)

POSITIONS, HEADS = 75, 3  # two runs and a part of one
KINDS = ["forward-kl", "reverse-kl", "total-variation"]


def example(seed=0, dtype=torch.float32, scale=1.0):
    """teacher [P, D], hidden [P·L, D], weight, targets with ignored ones, and an incoming gradient with zeros."""
    draw = torch.Generator().manual_seed(seed)
    teacher = (scale * torch.randn(POSITIONS, WIDTH, generator=draw)).to(dtype).requires_grad_()
    hidden = (scale * torch.randn(POSITIONS * HEADS, WIDTH, generator=draw)).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (POSITIONS * HEADS,), generator=draw)
    targets[torch.rand(len(targets), generator=draw) < 0.25] = -100
    targets.view(POSITIONS, HEADS)[-HEADS:] = -100  # beyond the last position nobody teaches
    grad = torch.randn(len(targets), generator=draw) * (torch.rand(len(targets), generator=draw) < 0.6)
    return teacher, hidden, weight, targets, grad


def dense(teacher, hidden, weight, targets, kind, share=0.0, transform=None):
    """Losses float64 [N] of head h at t against head 0 at t+h, written out; the teacher is a constant."""
    transform = transform or LogitTransform()
    said = transform(teacher.detach().double() @ weight.detach().double().T).softmax(-1)
    student = transform(hidden.double() @ weight.double().T).softmax(-1)
    losses = []
    for row, target in enumerate(targets.tolist()):
        if target == -100:
            losses.append(student.new_zeros(()))
            continue
        p, q = said[row // HEADS + row % HEADS + 1], student[row]
        apart = {
            "forward-kl": lambda p=p, q=q: (p * (p / q).log()).sum(),
            "reverse-kl": lambda p=p, q=q: (q * (q / p).log()).sum(),
            "total-variation": lambda p=p, q=q: 1 - torch.minimum(p, q).sum(),
        }[kind]()
        losses.append((1 - share) * apart - share * q[target].log())
    return torch.stack(losses)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_float64(kind, share):
    teacher, hidden, weight, targets, grad = example()
    losses, ce = linear_distillation(hidden, weight, targets, Distillation(teacher, kind, share))
    losses.backward(grad)
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = dense(teacher, hidden, weight, targets, kind, share)
    expected.backward(grad.double())

    assert losses.dtype == ce.dtype == torch.float32
    assert not ce.requires_grad
    assert teacher.grad is None
    assert_close(losses, expected.detach(), relative=2e-6)
    assert_close(ce, linear_cross_entropy(hidden, weight, targets).detach(), relative=1e-6)
    for actual, exact in zip(found, (hidden.grad, weight.grad), strict=True):
        assert_close(actual, exact, relative=2e-6)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [LogitTransform(1.5), LogitTransform(0.5, 2.0)])
def test_scaled_and_capped_logits(kind, transform, set_rows_per_chunk):
    set_rows_per_chunk(100)
    teacher, hidden, weight, targets, grad = example(1)
    losses, _ = linear_distillation(hidden, weight, targets, Distillation(teacher, kind, 0.2), transform=transform)
    losses.backward(grad)
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = dense(teacher, hidden, weight, targets, kind, 0.2, transform)
    expected.backward(grad.double())
    for actual, exact in zip((losses, *found), (expected.detach(), hidden.grad, weight.grad), strict=True):
        assert_close(actual, exact, relative=3e-6)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("constant_weight", [False, True])
@pytest.mark.parametrize("right", ["all", "some", "none"])
def test_a_hint_changes_no_result(right, constant_weight):
    teacher, hidden, weight, targets, grad = example(2)
    weight.requires_grad_(not constant_weight)
    by_head = torch.tensor([0.5, 2.0, 1.0])
    said = {
        "all": grad.view(-1, HEADS) / by_head,
        "some": torch.ones(POSITIONS, HEADS),
        "none": torch.randn(POSITIONS, HEADS),
    }
    hint = GradientHint(Hint(lambda positions, ce: said[right][positions]), by_head)
    results = []
    for given in (None, hint):
        hidden.grad = weight.grad = None
        losses, _ = linear_distillation(hidden, weight, targets, Distillation(teacher), hint=given)
        losses.backward(grad)
        results.append((losses, hidden.grad.clone(), None if constant_weight else weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[1][1], results[0][1], relative=1e-6)
    if not constant_weight:
        assert_close(results[1][2], results[0][2], relative=1e-6)


def test_hints_look_at_cross_entropies(set_rows_per_chunk):
    """Selection by excess loss compares what the text was worth, not how far from head 0 a prediction is."""
    set_rows_per_chunk(64)
    teacher, hidden, weight, targets, _ = example(3)
    seen = torch.full((POSITIONS, HEADS), torch.nan)

    def note(positions, ce):
        seen[positions] = ce
        return torch.ones_like(ce)

    linear_distillation(
        hidden, weight, targets, Distillation(teacher), hint=GradientHint(Hint(note), torch.ones(HEADS))
    )
    expected = linear_cross_entropy(hidden, weight, targets).detach().view(POSITIONS, HEADS)
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_says_the_same_has_no_loss_and_no_gradient(kind):
    teacher, _, weight, targets, _ = example(4)
    after = torch.arange(POSITIONS)[:, None] + torch.arange(1, HEADS + 1)
    hidden = teacher.detach()[after.clamp(max=POSITIONS - 1)].flatten(0, 1).requires_grad_()
    losses, _ = linear_distillation(hidden, weight, targets, Distillation(teacher, kind))
    losses.sum().backward()
    assert losses.abs().max() < 1e-6
    assert hidden.grad.abs().max() < 1e-5


@pytest.mark.usefixtures("on_accelerator")
def test_bfloat16(set_rows_per_chunk):
    set_rows_per_chunk(64)
    teacher, hidden, weight, targets, grad = example(5, torch.bfloat16)
    losses, _ = linear_distillation(hidden, weight, targets, Distillation(teacher))
    losses.backward(grad)
    assert (losses.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    found = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = dense(teacher, hidden, weight, targets, "forward-kl")
    expected.backward(grad.double())
    for actual, exact in zip((losses, *found), (expected.detach(), hidden.grad, weight.grad), strict=True):
        assert_close(actual, exact.double(), relative=2e-2)


@pytest.mark.parametrize("vocabulary", [131072])
def test_a_large_vocabulary_is_exact(vocabulary):
    """torch's own softmax on a CPU is off by 3e-5 there, which is what a student near its teacher is off by."""
    draw = torch.Generator().manual_seed(6)
    weight = torch.randn(vocabulary, 16, generator=draw)
    teacher = torch.randn(8, 16, generator=draw)
    hidden = (teacher.roll(-1, 0) + 0.01 * torch.randn(8, 16, generator=draw)).requires_grad_()
    targets = torch.zeros(8, dtype=torch.int64)
    targets[-1] = -100
    losses, _ = linear_distillation(hidden, weight, targets, Distillation(teacher))
    losses.sum().backward()
    p = (teacher.double() @ weight.double().T).log_softmax(-1).roll(-1, 0)
    q = (hidden.detach().double() @ weight.double().T).log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)[:-1]
    torch.testing.assert_close(losses[:-1].double(), expected, rtol=2e-3, atol=2e-7)
    gradient = ((q.exp() - p.exp()) @ weight.double())[:-1]
    assert_close(hidden.grad[:-1], gradient, relative=1e-4)


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_every_row_is_formed_once_and_the_teachers_little_more(witness, horizon, set_rows_per_chunk):
    """A run of 32 positions takes 32 + heads − 1 rows of the teacher, not one a prediction."""
    positions = 256
    set_rows_per_chunk(positions * horizon // 2)
    draw = torch.Generator().manual_seed(7)
    teacher = torch.randn(positions, WIDTH, generator=draw)
    hidden = torch.randn(positions * horizon, WIDTH, generator=draw)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw)
    targets = torch.randint(VOCABULARY, (positions * horizon,), generator=draw)
    with witness(columns=VOCABULARY) as seen:
        linear_distillation(hidden, weight, targets, Distillation(teacher))
    multiplied = sum(shapes[0][0] for name, shapes in seen.calls if name == "mm")
    teachers = multiplied - positions * horizon
    assert positions - horizon <= teachers <= positions * (32 + horizon - 1) // 32


def test_memory_is_that_of_the_cross_entropy(witness):
    """Neither the teacher's logits nor the student's are held for more than a chunk."""
    positions, heads, vocabulary, draw = 4096, 3, 4096, torch.Generator().manual_seed(8)
    teacher = torch.randn(positions, WIDTH, generator=draw)
    hidden = torch.randn(positions * heads, WIDTH, generator=draw).requires_grad_()
    weight = torch.randn(vocabulary, WIDTH, generator=draw).requires_grad_()
    targets = torch.randint(vocabulary, (positions * heads,), generator=draw)
    most = []
    for loss in (
        lambda hint: linear_cross_entropy(hidden, weight, targets, hint=hint),
        lambda hint: linear_distillation(hidden, weight, targets, Distillation(teacher), hint=hint)[0],
    ):
        hint = GradientHint(Hint(lambda positions, ce: torch.ones_like(ce)), torch.ones(heads))
        with witness(columns=vocabulary) as seen:
            loss(hint).sum().backward()
        most.append(seen.most_alive)
    assert most[1] <= 1.1 * most[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"divergence": "kl"}, "divergence is 'kl'; choose one of forward-kl, reverse-kl, total-variation"),
        ({"cross_entropy": 1.0}, "cross_entropy is 1.0; give its share of the loss, at least 0 and below 1"),
        ({"teacher": torch.zeros(7, WIDTH)}, "the teacher's states are"),
        ({"teacher": torch.zeros(POSITIONS, 3)}, "the teacher's states are"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(change, problem):
    teacher, hidden, weight, targets, _ = example()
    with pytest.raises(UserError, match=problem):
        linear_distillation(hidden, weight, targets, Distillation(**{"teacher": teacher, **change}))
