"""A policy whose heads disagree, and transformers' own decoding to hold it against."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wmtp_models import MtpForCausalLM

Sequences = list[list[int]]


@pytest.fixture
def make_policy(make_causal_lm: Callable[..., Any]) -> Callable[..., MtpForCausalLM]:
    """A tiny policy of a family whose later heads are right now and then."""

    def make(family: str = "llama", horizon: int = 4, head_kind: str = "layer", **overrides: Any) -> MtpForCausalLM:
        policy = MtpForCausalLM.wrap(make_causal_lm(family, **overrides), horizon, head_kind=head_kind)
        torch.manual_seed(1)
        with torch.no_grad():
            for head in policy.heads.children():
                for weight in head.parameters():
                    weight += 0.01 * torch.randn_like(weight)
        return policy.eval()

    return make


@pytest.fixture
def plain_decoding() -> Callable[..., Sequences]:
    """What transformers' `generate` makes of each prompt alone."""

    def decode(policy: MtpForCausalLM, prompts: Sequences, tokens: int, eos: int | None = None) -> Sequences:
        plain = policy.unwrap()
        options = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": eos, "pad_token_id": 0}
        rows = [torch.tensor([prompt]) for prompt in prompts]
        # With a mask of its own, or it would take a prompt's token 0 for padding.
        return [plain.generate(row, attention_mask=torch.ones_like(row), **options)[0].tolist() for row in rows]

    return decode


@pytest.fixture
def prompts() -> Sequences:
    """Four uneven ones over 64 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(64, (length,), generator=generator).tolist() for length in (3, 9, 1, 6)]
