"""critic.py: what each token added, and what the value head learns from."""

import math

import numpy as np
import pytest
import torch

from wmtp_core.advantages import (
    document_starts,
    generalized_advantages,
    lambda_return_losses,
    ranking_losses,
    value_differences,
)

NAN = float("nan")


def example(seed, rows=3, length=11):
    """values, document ids (pieces of 1 token and more), and a reward per document, some unknown."""
    rng = np.random.default_rng(seed)
    values = torch.tensor(rng.standard_normal((rows, length))).float()
    documents = torch.tensor((rng.random((rows, length)) < 0.35).cumsum(axis=1))
    per_document = np.where(rng.random((rows, length + 1)) < 0.3, np.nan, rng.standard_normal((rows, length + 1)))
    return values, documents, torch.tensor(per_document).float().gather(1, documents)


@pytest.mark.parametrize("discount", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_differences_equal_the_definition(oracle, seed, discount):
    values, documents, _ = example(seed)
    expected = oracle.differences(values, discount, documents.tolist())
    np.testing.assert_allclose(value_differences(values, discount, documents).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.95, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 11, 16, 17])
def test_advantages_equal_the_definition(oracle, length, discount, gae_lambda):
    deltas, documents, _ = example(length, length=length)
    expected = oracle.gae(deltas.tolist(), discount, gae_lambda, documents.tolist())
    actual = generalized_advantages(deltas, discount, gae_lambda, documents)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_undiscounted_advantages_telescope_to_what_the_rest_of_the_document_adds():
    values, _, _ = example(0)
    advantages = generalized_advantages(value_differences(values, 1.0), 1.0, 1.0)
    before = torch.nn.functional.pad(values[:, :-1], (1, 0))
    torch.testing.assert_close(advantages, values[:, -1:] - before)


@pytest.mark.parametrize("return_lambda", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_lambda_returns_equal_the_definition(oracle, seed, return_lambda):
    values, documents, rewards = example(seed)
    losses, known = lambda_return_losses(values.requires_grad_(), rewards, return_lambda, documents)
    losses.sum().backward()
    expected_known = ~np.isnan(rewards.numpy())
    returns = oracle.lambda_returns(values.detach(), rewards, return_lambda, documents.tolist())
    errors = np.where(expected_known, values.detach().numpy() - returns, 0)

    assert expected_known.any()
    assert not expected_known.all()
    np.testing.assert_array_equal(known.numpy(), expected_known)
    np.testing.assert_allclose(losses.detach().numpy(), errors**2, rtol=1e-5, atol=1e-6)
    # The returns are constants: only V_t of (V_t − G_t)² learns.
    np.testing.assert_allclose(values.grad.numpy(), 2 * errors, rtol=1e-5, atol=1e-6)


def test_lambda_1_regresses_every_token_on_the_reward():
    values = torch.tensor([[0.25, 0.5, 9.0]])
    losses, known = lambda_return_losses(values, torch.tensor([[1.0, 1.0, NAN]]), 1.0, torch.tensor([[0, 0, 1]]))
    assert losses.tolist() == [[0.75**2, 0.5**2, 0.0]]
    assert known.tolist() == [[True, True, False]]


def test_no_document_ids_is_one_document_a_row():
    values, _, rewards = example(1)
    rewards = rewards[:, :1].expand_as(values)
    one = torch.zeros_like(values, dtype=torch.int64)
    assert torch.equal(value_differences(values, 0.9), value_differences(values, 0.9, one))
    assert torch.equal(generalized_advantages(values, 0.9, 0.8), generalized_advantages(values, 0.9, 0.8, one))
    for a, b in zip(
        lambda_return_losses(values, rewards, 0.9), lambda_return_losses(values, rewards, 0.9, one), strict=True
    ):
        assert torch.equal(a, b)


def test_documents_do_not_see_each_other():
    """Packed side by side or each in a row of its own: the same bits."""
    values, _, _ = example(2, rows=2, length=6)
    packed, ids = values.view(1, 12), torch.arange(2).repeat_interleave(6).view(1, 12)
    rewards = torch.tensor([[1.0], [-2.0]]).expand(2, 6)
    for alone, together in (
        (value_differences(values, 0.9), value_differences(packed, 0.9, ids)),
        (generalized_advantages(values, 0.9, 0.8), generalized_advantages(packed, 0.9, 0.8, ids)),
        (
            lambda_return_losses(values, rewards, 0.8)[0],
            lambda_return_losses(packed, rewards.reshape(1, 12), 0.8, ids)[0],
        ),
    ):
        assert torch.equal(alone.view(1, 12), together)


def test_document_starts():
    assert document_starts(torch.tensor([[5, 5, 2, 2, 3], [0, 0, 0, 0, 0]])).tolist() == [
        [True, False, True, False, True],
        [True, False, False, False, False],
    ]


def test_ranking_is_at_the_last_token_of_a_rejected_text_beside_its_chosen_one():
    pairs = torch.tensor(
        [
            [1, 1, -1, -1, 0, 2, -2, -2],  # two pairs, a stranger between them
            [-1, -1, 3, 0, -3, 4, 5, -4],  # cut off from its chosen text; a stranger between; another pair between
        ]
    )
    documents = torch.tensor([[0, 0, 1, 1, 2, 3, 4, 4], [0, 0, 1, 2, 3, 4, 5, 6]])
    values = torch.linspace(-1, 2, 16).view(2, 8).requires_grad_()
    losses, mask = ranking_losses(values, pairs, documents)
    losses.sum().backward()

    expected, gradient = np.zeros((2, 8)), np.zeros((2, 8))
    for chosen, rejected in (((0, 1), (0, 3)), ((0, 5), (0, 7))):
        margin = (values[chosen] - values[rejected]).item()
        expected[rejected] = -math.log(1 / (1 + math.exp(-margin)))
        gradient[chosen], gradient[rejected] = (s / (1 + math.exp(margin)) for s in (-1, 1))
    np.testing.assert_array_equal(mask.numpy(), expected != 0)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(values.grad.numpy(), gradient, rtol=1e-5)


def test_ranking_of_far_apart_values_stays_finite():
    values = torch.tensor([[1e4, -1e4, -1e4, 1e4]], requires_grad=True)
    losses, _ = ranking_losses(values, torch.tensor([[1, -1, 2, -2]]), torch.tensor([[0, 1, 2, 3]]))
    losses.sum().backward()
    assert losses.tolist() == [[0, 0, 0, 2e4]]
    assert values.grad.tolist() == [[0, 0, -1, 1]]


def test_ranking_without_pairs_is_no_loss():
    losses, mask = ranking_losses(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0, 0, 1]]))
    assert not losses.any()
    assert not mask.any()
