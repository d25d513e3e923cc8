"""loss.py: the weighted loss from logits and from per-token losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_core import UserError, compute_weighted_mtp_loss, weighted_mtp_loss

VOCABULARY = 7


def example(seed, rows=2, length=6, horizon=3):
    """logits, labels with ignored ones, an attention mask, and weights of which a third are 0."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((rows, length)) < 0.2, -100, rng.integers(0, VOCABULARY, (rows, length)))
    weights = rng.random((rows, length, horizon)) * rng.integers(0, 3, (rows, length, horizon))
    logits = 3 * rng.standard_normal((rows, length, horizon, VOCABULARY))
    mask = (rng.random((rows, length)) < 0.8).astype(int)
    return torch.tensor(logits).float(), torch.tensor(labels), torch.tensor(mask), torch.tensor(weights).float()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    length=st.integers(1, 7),
    horizon=st.integers(1, 5),
    normalize_by=st.sampled_from(["valid", "selected"]),
)
def test_loss_equals_float64(oracle, seed, rows, length, horizon, normalize_by):
    logits, labels, mask, weights = example(seed, rows, length, horizon)
    loss, valid, ce = compute_weighted_mtp_loss(logits, labels, weights, horizon, mask, normalize_by=normalize_by)

    expected_targets, expected_valid = oracle.targets(labels.numpy(), horizon, mask.numpy())
    expected_ce = oracle.cross_entropy(logits.numpy(), expected_targets)
    expected = oracle.weighted_loss(expected_ce, weights.numpy(), expected_valid, normalize_by)
    assert (loss.dtype, ce.dtype, valid.dtype, loss.shape) == (torch.float32, torch.float32, torch.bool, ())
    np.testing.assert_array_equal(valid.numpy(), expected_valid)
    np.testing.assert_allclose(ce.numpy(), expected_ce, rtol=1e-5, atol=1e-6)
    assert (ce[~valid] == 0).all()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
def test_horizon_1_and_weights_of_1_are_the_plain_cross_entropy(normalize_by):
    logits, labels, _, _ = example(seed=0, horizon=1)
    logits.requires_grad_()
    loss, _, _ = compute_weighted_mtp_loss(logits, labels, torch.ones(2, 6, 1), horizon=1, normalize_by=normalize_by)
    plain = F.cross_entropy(logits[:, :-1, 0].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_gradient_is_weight_times_softmax_minus_one_hot(oracle):
    logits, labels, mask, weights = example(seed=3)
    logits.requires_grad_()
    compute_weighted_mtp_loss(logits, labels, weights, 3, mask)[0].backward()
    tokens, valid = oracle.targets(labels.numpy(), 3, mask.numpy())
    for b, t, h in np.ndindex(*valid.shape):
        expected = np.zeros(VOCABULARY)
        if valid[b, t, h]:
            gradient = oracle.token_gradient(logits[b, t, h].tolist(), tokens[b, t, h])
            expected = gradient * weights[b, t, h].item() / valid[..., h].sum() / 3
        np.testing.assert_allclose(logits.grad[b, t, h].numpy(), expected, rtol=1e-4, atol=1e-8)
    zero = (weights == 0) | ~torch.tensor(valid)
    assert (torch.tensor(valid) & zero).any()
    assert (logits.grad[zero] == 0).all()


def test_coefficients_weigh_heads():
    generator = torch.Generator().manual_seed(0)
    ce, weights = torch.rand(2, 2, 5, 3, generator=generator)
    counts, coefficients = torch.tensor([7, 5, 0]), [1.0, 0.25, 3.0]
    heads = [weighted_mtp_loss(ce[..., h : h + 1], weights[..., h : h + 1], counts[h : h + 1]) for h in range(3)]
    expected = sum(c * loss for c, loss in zip(coefficients, heads, strict=True)) / 3
    torch.testing.assert_close(weighted_mtp_loss(ce, weights, counts, torch.tensor(coefficients)), expected)
    assert torch.equal(weighted_mtp_loss(ce, weights, counts, torch.ones(3)), weighted_mtp_loss(ce, weights, counts))


def test_weights_are_constants():
    ce, weights = torch.ones(1, 2, 2, requires_grad=True), torch.ones(1, 2, 2, requires_grad=True)
    weighted_mtp_loss(ce, weights, torch.tensor([2, 2])).backward()
    assert weights.grad is None
    assert torch.equal(ce.grad, torch.full((1, 2, 2), 0.25))


@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
def test_a_head_without_targets_contributes_nothing(normalize_by):
    """Three tokens and five heads: heads 2, 3 and 4 have no target, and the loss is still over H = 5."""
    logits = torch.randn(1, 3, 5, VOCABULARY, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1, 2, 3]])
    loss, valid, ce = compute_weighted_mtp_loss(logits, labels, torch.ones(1, 3, 5), 5, normalize_by=normalize_by)
    loss.backward()
    assert valid.sum(dim=(0, 1)).tolist() == [2, 1, 0, 0, 0]
    torch.testing.assert_close(loss, (ce[0, :2, 0].mean() + ce[0, 0, 1]) / 5)
    assert (logits.grad[~valid] == 0).all()


@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
def test_every_label_ignored_is_a_loss_of_0(normalize_by):
    logits = torch.randn(2, 3, 2, VOCABULARY, requires_grad=True)
    labels = torch.full((2, 3), -100)
    loss, valid, _ = compute_weighted_mtp_loss(logits, labels, torch.ones(2, 3, 2), 2, normalize_by=normalize_by)
    loss.backward()
    assert loss.item() == 0
    assert not valid.any()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("normalize_by", ["valid", "selected"])
def test_nothing_selected_is_a_loss_of_0(normalize_by):
    logits, labels, mask, _ = example(seed=0)
    loss, _, _ = compute_weighted_mtp_loss(logits, labels, torch.zeros(2, 6, 3), 3, mask, normalize_by=normalize_by)
    assert loss.item() == 0


def test_what_stands_at_invalid_targets_does_not_matter():
    logits, labels, mask, weights = example(seed=1)
    for normalize_by in ("valid", "selected"):
        loss, valid, _ = compute_weighted_mtp_loss(logits, labels, weights, 3, mask, normalize_by=normalize_by)
        assert not valid.all()
        poisoned = logits.masked_fill(~valid[..., None], float("nan")), weights.masked_fill(~valid, float("nan"))
        again, _, ce = compute_weighted_mtp_loss(poisoned[0], labels, poisoned[1], 3, mask, normalize_by=normalize_by)
        assert torch.equal(loss, again)
        assert ce.isfinite().all()


def test_one_outlier_counts_only_with_its_weight():
    ce = torch.tensor([[[1.0, 3e38], [2.0, 5.0]]])
    weights = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert weighted_mtp_loss(ce, weights, torch.tensor([2, 2])).item() == (3 / 2 + 5 / 2) / 2


def test_a_nan_that_is_learned_from_is_seen():
    ce = torch.tensor([[[1.0, float("nan")]]])
    assert weighted_mtp_loss(ce, torch.ones(1, 1, 2), torch.tensor([1, 1])).isnan()


def test_micro_batches_add_up_to_the_whole_batch():
    """Sums over counts of the whole optimizer step: uneven validity does not make one micro-batch weigh more."""
    logits, labels, mask, weights = example(seed=5, rows=4)
    labels[0, 2:] = -100
    whole, valid, ce = compute_weighted_mtp_loss(logits, labels, weights, 3, mask)
    counts = valid.sum(dim=(0, 1))
    weights = weights.masked_fill(~valid, 0)
    parts = [weighted_mtp_loss(ce[b : b + 1], weights[b : b + 1], counts) for b in range(4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=0)


def test_bfloat16_logits_and_another_ignore_index():
    logits, labels, mask, weights = example(seed=2)
    logits = logits.bfloat16()
    expected = compute_weighted_mtp_loss(logits.float(), labels, weights, 3, mask)
    actual = compute_weighted_mtp_loss(
        logits, labels.masked_fill(labels == -100, -1), weights, 3, mask, ignore_index=-1
    )
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("logits", "weights", "horizon", "normalize_by", "named"),
    [
        ((2, 4, 3, 5), (2, 4, 3), 4, "valid", r"\[2, 4, 4, V\]"),
        ((2, 3, 3, 5), (2, 4, 3), 3, "valid", r"\[2, 4, 3, V\]"),
        ((2, 4, 5), (2, 4, 3), 3, "valid", r"\[2, 4, 3, V\]"),
        ((2, 4, 3, 5), (2, 4, 1), 3, "valid", "head_weights"),
        ((2, 4, 3, 5), (2, 4, 3), 3, "mean", "'mean'"),
    ],
)
def test_what_does_not_fit_is_refused(logits, weights, horizon, normalize_by, named):
    labels = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(UserError, match=named) as raised:
        compute_weighted_mtp_loss(torch.zeros(logits), labels, torch.zeros(weights), horizon, normalize_by=normalize_by)
    assert "\n" not in str(raised.value)
