"""Rows end where they must, and prompts that cannot begin are refused in one line."""

from collections.abc import Callable

import pytest

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, generate
from wmtp_models.generation.rows import GeneratedSequence, context_length, start_sequences

Make = Callable[..., MtpForCausalLM]


@pytest.mark.parametrize(
    ("tokens", "taken", "ended"),
    [
        ([5, 6], [5, 6], False),
        ([5, 6, 7], [5, 6, 7], True),
        ([5, 6, 7, 8], [5, 6, 7], True),
        ([5, 9, 7], [5, 9], True),
        ([9, 9], [9], True),
        ([5, 6, 7, 9], [5, 6, 7], True),
    ],
)
def test_a_row_takes_tokens_up_to_eos_and_limit(tokens: list[int], taken: list[int], ended: bool) -> None:
    row = GeneratedSequence(0, [9, 9], 2, 5, (9,))
    assert not row.ended
    assert row.add(tokens) == taken
    assert row.tokens == [9, 9, *taken]
    assert (row.ended, row.remaining) == (ended, 3 - len(taken))


def test_a_row_ends_at_the_context(make_policy: Make) -> None:
    policy = make_policy("gpt2", max_position_embeddings=16)
    assert [row.limit for row in start_sequences(policy, [[1] * 3, [1] * 14], 5, ())] == [8, 16]
    assert [len(row) for row in generate(policy, [[1] * 15, [1] * 3], 50).sequences] == [16, 16]


def test_a_model_without_a_limit_has_none(make_policy: Make) -> None:
    policy = make_policy()
    policy.config.trunk = type("Trunk", (), {"vocab_size": 64, "get_text_config": lambda trunk: trunk})()
    assert start_sequences(policy, [[1]], 10**9, ())[0].limit == 10**9 + 1
    assert context_length(policy) > 10**18


@pytest.mark.parametrize(
    ("prompts", "tokens", "said"),
    [
        ([], 5, "there is no prompt: give at least one"),
        ([[1], []], 5, "prompt 1 is empty: give it at least one token"),
        ([[1], [1] * 64], 5, "prompt 1 has 64 tokens, and the model's context is 64, .*: shorten the prompt"),
        ([[1, 64]], 5, "prompt 0 holds token 64, and the model's vocabulary is 64: use the model's own tokenizer"),
        ([[-1]], 5, "prompt 0 holds token -1"),
        ([[1]], 0, "max_new_tokens is 0: it must be at least 1"),
    ],
)
def test_what_cannot_begin_is_refused(make_policy: Make, prompts: list[list[int]], tokens: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        generate(make_policy(), prompts, tokens)
    assert "\n" not in str(error.value)
