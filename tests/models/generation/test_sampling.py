"""Samples follow the plain model: the rejection rule, the filters, and whole continuations."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, build_policy, generate
from wmtp_models.generation import sampling
from wmtp_models.generation.sampling import Sampling, draw, verify_drafts

ROWS = 40_000


def verified(p: list[float], q: list[float], after: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drafts from q, verified by p: drafts, how many were kept, the token after."""
    generator = torch.Generator().manual_seed(0)
    target, proposal = torch.tensor([[p, after]]).expand(ROWS, -1, -1), torch.tensor([[q]]).expand(ROWS, -1, -1)
    drafts = draw(proposal, generator)
    return drafts, *verify_drafts(target, proposal, drafts, generator)


def test_what_comes_out_follows_the_target() -> None:
    p, q = [0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.1, 0.1, 0.0, 0.3]
    drafts, kept, following = verified(p, q, [0.0, 0.0, 0.0, 0.0, 1.0])
    first = torch.where(kept == 1, drafts[:, 0], following)
    torch.testing.assert_close(first.bincount(minlength=5) / ROWS, torch.tensor(p), atol=0.01, rtol=0)
    overlap = sum(map(min, p, q))  # the probability that a draft is kept (arXiv 2211.17192, theorem 3.5)
    assert (kept.float().mean() - overlap).abs() < 0.01
    assert (following[kept == 1] == 4).all(), "after the last draft comes a draw from the target"
    assert not (following[kept == 0] == 0).any(), "the residual is empty where the proposal is the larger one"


def test_a_perfect_draft_is_always_kept_and_an_impossible_one_never() -> None:
    p = [0.25, 0.75, 0.0, 0.0]
    assert verified(p, p, p)[1].all()
    _, kept, following = verified(p, [0.0, 0.0, 0.5, 0.5], p)
    assert not kept.any()
    torch.testing.assert_close(following.bincount(minlength=4) / ROWS, torch.tensor(p), atol=0.01, rtol=0)


def test_even_a_draw_of_0_keeps_no_impossible_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    p = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    kept, following = verify_drafts(p, torch.full((1, 1, 2), 0.5), torch.tensor([[0]]), generator(0))
    assert (kept.item(), following.item()) == (0, 1)


def test_a_residual_lost_to_rounding_is_the_target_itself() -> None:
    p = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).expand(50, -1, -1)
    above = torch.full((50, 1, 2), 1.5)  # nowhere below the target, as rounding can leave a proposal that equals it
    kept, following = verify_drafts(p, above, torch.ones(50, 1, dtype=torch.long), generator(0))
    assert 0 < kept.sum() < 50
    assert (following == 1).all()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drafts_after_one_that_is_not_kept_are_lost() -> None:
    p = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    kept, following = verify_drafts(p, torch.full((1, 2, 2), 0.5), torch.tensor([[1, 0]]), generator(0))
    assert (kept.item(), following.item()) == (0, 0)


def test_filters_are_those_of_their_definitions() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0]]])
    e = torch.tensor([3.0, 1.0, 2.0, 0.0]).exp()
    torch.testing.assert_close(Sampling().probabilities(logits)[0, 0], e / e.sum())
    hot = torch.tensor([1.5, 0.5, 1.0, 0.0]).exp()
    torch.testing.assert_close(Sampling(temperature=2.0).probabilities(logits)[0, 0], hot / hot.sum())
    two = e * torch.tensor([1, 0, 1, 0])
    torch.testing.assert_close(Sampling(top_k=2).probabilities(logits)[0, 0], two / two.sum())
    # 0.64 alone is not enough for 0.7, and 0.64 + 0.24 is
    torch.testing.assert_close(Sampling(top_p=0.7).probabilities(logits)[0, 0], two / two.sum())
    one = Sampling(top_p=0.7, temperature=0.5).probabilities(logits)[0, 0]
    assert one.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0: it must be at least 1"),
        ({"top_p": 0.0}, r"top_p is 0.0: it must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_values_out_of_bounds_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampling(**given)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8, "temperature": 1.5}])
def test_samples_have_the_plain_models_distribution(how: dict[str, Any]) -> None:
    assert chi_square(Sampling(**how, seed=3)) > 0.01


def keep_every_draft(
    target: Tensor, proposal: Tensor, drafts: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return torch.full((len(drafts),), drafts.shape[1]), draw(target[:, -1], generator)


def redraw_from_the_target(
    target: Tensor, proposal: Tensor, drafts: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    kept, _ = verify_drafts(target, proposal, drafts, generator)
    return kept, draw(target[torch.arange(len(kept)), kept], generator)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [keep_every_draft, redraw_from_the_target])
def test_the_test_of_samples_finds_a_mistake(
    mistake: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "verify_drafts", mistake)
    assert chi_square(Sampling(seed=3)) < 1e-6


def chi_square(how: Sampling, rows: int = 6000) -> float:
    """How probable samples are that fit no better than these, over all 64 continuations of two uneven prompts."""
    policy = four_tokens()
    prompts = [[0, 3, 2, 1], [2]]
    result = generate(policy, prompts * rows, 3, sampling=how)
    assert sum(result.accepted) > 0
    statistic, cells = 0.0, 0
    for number, prompt in enumerate(prompts):
        counts = Counter(tuple(row[len(prompt) :]) for row in result.sequences[number::2])
        continuations = list(itertools.product(range(4), repeat=3))
        texts = torch.tensor([prompt + list(tokens) for tokens in continuations])
        steps = how.probabilities(policy.head_logits(texts)[:, len(prompt) - 1 : -1, 0])  # [64, 3, V]
        chances = steps.gather(-1, texts[:, len(prompt) :, None]).squeeze(-1).double().prod(dim=-1)
        for tokens, expected in zip(continuations, (rows * chances).tolist(), strict=True):
            if expected == 0:
                assert counts[tokens] == 0
            else:
                statistic, cells = statistic + (counts[tokens] - expected) ** 2 / expected, cells + 1
        cells -= 1
    return torch.special.gammaincc(torch.tensor(cells / 2), torch.tensor(statistic / 2)).item()


def four_tokens() -> MtpForCausalLM:
    """A policy over a vocabulary of 4 whose later heads have opinions of their own."""
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    policy = build_policy(config, vocab_size=4, horizon=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for head in policy.heads.layers:
            for weight in head.parameters():
                weight += 0.2 * torch.randn_like(weight)
    return policy.eval()


def test_a_seed_draws_the_same_text(make_policy: Callable[..., MtpForCausalLM], prompts: list[list[int]]) -> None:
    policy = make_policy()
    first, again, other = (generate(policy, prompts, 20, sampling=Sampling(seed=seed)).sequences for seed in (1, 1, 2))
    assert first == again != other
