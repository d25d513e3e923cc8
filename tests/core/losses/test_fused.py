"""The fused loss against float64, what it holds in memory and what it skips."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fused_problems import HEADS, NOT_FINITE, ROWS, VOCABULARY, WIDTH, Hint, assert_close, example

from wmtp_core import GradientHint, UserError, dense_cross_entropy, linear_cross_entropy


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("seed", range(4))
def test_values_and_gradients_equal_float64(oracle, seed):
    hidden, weight, targets, grad = example(seed)
    ce = linear_cross_entropy(hidden, weight, targets)
    ce.backward(grad)
    expected = oracle.linear_cross_entropy(hidden.detach(), weight.detach(), targets.tolist(), grad.tolist())
    for actual, exact in zip((ce, hidden.grad, weight.grad), expected, strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, exact, relative=1e-6)


@pytest.mark.usefixtures("form")
def test_bfloat16_inputs_give_float32_losses_and_bfloat16_gradients(oracle):
    hidden, weight, targets, grad = example(dtype=torch.bfloat16)
    ce = linear_cross_entropy(hidden, weight, targets)
    ce.backward(grad)
    assert (ce.dtype, hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    exact = oracle.linear_cross_entropy(
        hidden.detach().double(), weight.detach().double(), targets.tolist(), grad.tolist()
    )
    for actual, expected in zip((ce, hidden.grad, weight.grad), exact, strict=True):
        assert_close(actual, expected, relative=2e-2)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("on_accelerator", ["as on a CPU", "as on an accelerator"], indirect=True)
def test_many_chunks_add_up_in_float32(set_rows_per_chunk):
    """1000 equal gradients, one row a chunk: a bfloat16 sum would stop growing after 256 of them."""
    set_rows_per_chunk(1)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(1000, dtype=torch.int64)).sum().backward()
    assert weight.grad.flatten().tolist() == [-500, 500]


@pytest.mark.usefixtures("on_accelerator")
def test_the_loss_of_bfloat16_logits_is_not_rounded_to_bfloat16():
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(50)
    identity = torch.eye(VOCABULARY, dtype=torch.bfloat16)  # logits = hidden, with no rounding in the product
    for ce in (dense_cross_entropy(logits, targets), linear_cross_entropy(logits, identity, targets)):
        assert ce.dtype == torch.float32
        assert_close(ce, F.cross_entropy(logits.double(), targets, reduction="none"), relative=1e-6)


def test_dense_equals_float64_and_is_zero_at_ignored_targets(oracle):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 3, 11, generator=generator)
    targets = torch.randint(11, (2, 5, 3), generator=generator)
    targets[0, 1], targets[1, :, 2] = -100, -100
    ce = dense_cross_entropy(logits, targets)
    assert ce.shape == targets.shape
    assert_close(ce, oracle.cross_entropy(logits.numpy(), targets.numpy()), relative=1e-6)
    assert (ce[targets == -100] == 0).all()


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 1000, 50257])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_float32_losses_are_those_of_torch_to_the_bit(rows, vocabulary):
    """The buffer that is reused changes nothing, and a confident token's small loss is not lost in its normalizer."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = 5 * torch.randn(rows, WIDTH, generator=generator)
    weight = torch.randn(vocabulary, WIDTH, generator=generator)
    logits = hidden @ weight.T
    targets = torch.where(torch.arange(rows) % 2 == 0, logits.argmax(dim=-1), 0)
    assert torch.equal(
        linear_cross_entropy(hidden, weight, targets), F.cross_entropy(logits, targets, reduction="none")
    )


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("vocabulary", [2, 17, 1000, 131072])
def test_gradients_are_exact_in_a_large_vocabulary_too(vocabulary):
    """More so than those of torch, whose softmax on a CPU is off by 1e-5 of its size there."""
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = (4 * torch.randn(12, 128, generator=generator) / 128**0.5).requires_grad_()
    weight = torch.randn(vocabulary, 128, generator=generator).requires_grad_()
    logits = (hidden @ weight.T).detach().double()  # what the rounding of this product does is not looked at
    targets = torch.where(torch.arange(12) % 2 == 0, logits.argmax(dim=-1), 0)
    ce = linear_cross_entropy(hidden, weight, targets)
    ce.sum().backward()
    torch.testing.assert_close(ce.double(), F.cross_entropy(logits, targets, reduction="none"), rtol=1e-6, atol=2e-5)
    of_logits = logits.softmax(dim=-1) - F.one_hot(targets, vocabulary)
    assert_close(hidden.grad, of_logits @ weight.detach().double(), relative=1e-6)
    assert_close(weight.grad, of_logits.T @ hidden.detach().double(), relative=1e-6)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_large_logits_do_not_overflow(logit):
    hidden = torch.tensor([[logit]], requires_grad=True)
    ce = linear_cross_entropy(hidden, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0]))
    ce.backward(torch.ones(1))
    assert ce.item() == max(0.0, -2 * logit)
    assert hidden.grad.item() == (0 if logit > 0 else -2)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("poison", NOT_FINITE)
def test_rows_of_ignored_targets_are_never_looked_at(poison):
    hidden, weight, targets, grad = example()
    ignored = targets == -100
    clean = linear_cross_entropy(hidden, weight, targets)
    clean_grads = torch.autograd.grad(clean, (hidden, weight), grad)
    poisoned = hidden.detach().masked_fill(ignored[:, None], poison).requires_grad_()
    ce = linear_cross_entropy(poisoned, weight, targets)
    ce.backward(grad.masked_fill(ignored, poison))  # a gradient that arrives there is not looked at either

    assert ignored.any()
    assert torch.equal(ce, clean)
    assert (ce[ignored] == 0).all()
    assert torch.equal(poisoned.grad, clean_grads[0])
    assert torch.equal(
        torch.autograd.grad(linear_cross_entropy(poisoned, weight, targets), weight, grad)[0], clean_grads[1]
    )


def test_rows_of_gradient_zero_are_skipped(witness):
    hidden, weight, targets, grad = example()
    ce = linear_cross_entropy(hidden, weight, targets)
    with witness() as backward:
        ce.backward(grad)
    needed = (grad != 0) & (targets != -100)

    assert 0 < needed.sum() < (targets != -100).sum()
    assert backward.rows_multiplied(columns=VOCABULARY) == needed.sum()
    assert (hidden.grad[~needed] == 0).all()
    assert (hidden.grad[needed] != 0).any(dim=-1).all()


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("poison", NOT_FINITE)
@pytest.mark.parametrize("hinted", [False, True])
def test_what_was_not_selected_cannot_spoil_the_gradient(poison, hinted):
    hidden, weight, targets, grad = example()
    hint = GradientHint(Hint(lambda positions, ce: torch.ones_like(ce)), torch.ones(HEADS)) if hinted else None
    skipped = grad == 0
    poisoned = hidden.detach().masked_fill(skipped[:, None], poison).requires_grad_()
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight), grad)
    ce = linear_cross_entropy(poisoned, weight, targets, hint=hint)
    actual = torch.autograd.grad(ce, (poisoned, weight), grad)
    for found, exact in zip(actual, expected, strict=True):
        assert_close(found, exact.double().numpy(), relative=1e-6)
    if not hinted:
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("bad", ["hidden", "gradient"])
def test_a_nan_in_a_row_that_counts_is_seen(bad):
    hidden, weight, targets, grad = example()
    row = ((grad != 0) & (targets != -100)).nonzero()[0]
    with torch.no_grad():
        (hidden if bad == "hidden" else grad)[row] = float("nan")
    ce = linear_cross_entropy(hidden, weight, targets)
    ce.backward(grad)
    assert ce[row].isnan().item() == (bad == "hidden")
    assert hidden.grad[row].isnan().all()
    assert weight.grad.isnan().any()


@pytest.mark.parametrize(("dtype", "chunks"), [(torch.float32, 1), (torch.bfloat16, 1.5)])
def test_one_chunk_of_logits_is_all_that_is_ever_alive(set_rows_per_chunk, witness, dtype, chunks):
    """In float32, one chunk; in bfloat16, one in float32 and the half of it that the product is or becomes."""
    elements = 16 * VOCABULARY
    set_rows_per_chunk(16)
    hidden, weight, targets, _ = example(rows=120, dtype=dtype)
    with witness(columns=VOCABULARY) as seen:
        linear_cross_entropy(hidden, weight, targets).sum().backward()
    assert seen.rows_multiplied(columns=VOCABULARY) == 2 * (targets != -100).sum()  # forward, and once more backward
    assert seen.largest <= elements
    assert seen.most_alive <= chunks * elements * 4


@pytest.mark.parametrize(("dtype", "chunks"), [(torch.float32, 1.75), (torch.bfloat16, 2.25)])
def test_a_hint_holds_the_kept_rows_of_one_chunk_besides(set_rows_per_chunk, witness, dtype, chunks):
    set_rows_per_chunk(16)
    hidden, weight, targets, _ = example(rows=120, dtype=dtype)
    kept = torch.arange(30 * HEADS).view(30, HEADS) % 3 != 0
    rule = GradientHint(Hint(lambda positions, ce: kept[positions].float(), 2 / 3), torch.ones(HEADS))
    with witness(columns=VOCABULARY) as seen:
        linear_cross_entropy(hidden, weight, targets, hint=rule).view(30, HEADS)[kept].sum().backward()
    assert "mm" in seen.names()
    assert seen.largest <= 16 * VOCABULARY
    assert seen.most_alive <= chunks * 16 * VOCABULARY * 4


def test_the_forward_keeps_no_logits():
    hidden, weight, targets, _ = example()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(tuple(x.shape)) or x, lambda x: x):
        linear_cross_entropy(hidden, weight, targets)
    assert (ROWS, WIDTH) in saved
    assert max(np.prod(shape) for shape in saved) == max(ROWS, VOCABULARY) * WIDTH


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_costs_nothing_and_leaves_the_other_gradient_as_it_is(frozen, witness):
    hidden, weight, targets, grad = example()
    linear_cross_entropy(hidden, weight, targets).backward(grad)
    inputs = {"hidden": hidden.detach().clone(), "weight": weight.detach().clone()}
    learned = "weight" if frozen == "hidden" else "hidden"
    inputs[learned].requires_grad_()
    ce = linear_cross_entropy(inputs["hidden"], inputs["weight"], targets)
    with witness() as backward:
        ce.backward(grad)
    assert [name in ("mm", "addmm_") for name, _ in backward.calls].count(
        True
    ) == 2  # the logits again, and the one gradient
    assert inputs[frozen].grad is None
    assert torch.equal(inputs[learned].grad, {"hidden": hidden, "weight": weight}[learned].grad)


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("targets", [[], [-100, -100, -100]], ids=["no row", "every target ignored"])
def test_nothing_to_learn(targets):
    hidden = torch.randn(len(targets), WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    ce = linear_cross_entropy(hidden, weight, torch.tensor(targets, dtype=torch.int64))
    ce.sum().backward()
    assert ce.tolist() == [0.0] * len(targets)
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_strided_inputs_and_another_ignore_index():
    hidden, weight, targets, grad = example()
    expected = linear_cross_entropy(hidden, weight, targets)
    expected_grad = torch.autograd.grad(expected, weight, grad)[0]
    strided = hidden.detach().T.contiguous().T, weight.detach().T.contiguous().T.requires_grad_()
    ce = linear_cross_entropy(*strided, targets.masked_fill(targets == -100, 3 - 10), ignore_index=-7)
    torch.testing.assert_close(ce, expected)
    torch.testing.assert_close(torch.autograd.grad(ce, strided[1], grad)[0], expected_grad)


@pytest.mark.usefixtures("on_accelerator")
def test_the_same_inputs_give_the_same_bits():
    hidden, weight, targets, grad = example()
    results = []
    for _ in range(2):
        ce = linear_cross_entropy(hidden, weight, targets)
        results.append((ce, *torch.autograd.grad(ce, (hidden, weight), grad)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"),
    [((4, 3), (5, 2), (4,)), ((2, 2, 3), (5, 3), (2, 2)), ((4, 3), (5, 3), (3,)), ((4, 3), (3,), (4,))],
)
def test_shapes_that_do_not_fit_are_refused(hidden, weight, targets):
    with pytest.raises(UserError, match="do not fit") as raised:
        linear_cross_entropy(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64))
    assert str(list(hidden)) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_a_token_beyond_the_vocabulary_is_not_passed_over(token):
    hidden, weight, _, _ = example(rows=1)
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(hidden, weight, torch.tensor([token]))
