"""Greedy text is transformers' own to the token, and the counts are true."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, build_policy, generate
from wmtp_models.generation import decoding
from wmtp_models.generation.greedy import GreedyVerifier
from wmtp_models.generation.rows import GeneratedSequence
from wmtp_models.heads.base import HeadInputs

Make = Callable[..., MtpForCausalLM]
Sequences = list[list[int]]
Decode = Callable[..., Sequences]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_text_is_that_of_transformers(
    family: str, attention: str, make_policy: Make, plain_decoding: Decode, prompts: Sequences
) -> None:
    policy = make_policy(family, attn_implementation=attention)
    result = generate(policy, prompts, 30)
    assert result.sequences == plain_decoding(policy, prompts, 30)
    assert result.new_tokens == 120
    assert 0 < sum(result.accepted) < sum(result.drafted), "some drafts are kept and some are not"


def test_greedy_text_is_that_of_transformers_over_a_padded_batch(
    family: str, make_policy: Make, prompts: Sequences
) -> None:
    policy = make_policy(family)
    padded = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = policy.unwrap().generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=0
    )[:, 9:]
    sequences = generate(policy, prompts, 20).sequences
    assert [sequence[-20:] for sequence in sequences] == expected.tolist()


def test_greedy_text_is_that_of_a_loop_without_a_cache(family: str, make_policy: Make) -> None:
    policy = make_policy(family)
    tokens = [11, 3]
    for _ in range(25):
        tokens.append(int(policy.head_logits(torch.tensor([tokens]))[0, -1, 0].argmax()))
    assert generate(policy, [[11, 3]], 25).sequences == [tokens]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_greedy_text_under_any_circumstances(data: st.DataObject, make_policy: Make, plain_decoding: Decode) -> None:
    family = data.draw(st.sampled_from(["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox"]))
    policy = make_policy(family, horizon=data.draw(st.integers(1, 5)), max_position_embeddings=32)
    prompt = st.lists(st.integers(0, 63), min_size=1, max_size=31)
    prompts = data.draw(st.lists(prompt, min_size=1, max_size=4))
    wanted = data.draw(st.integers(1, 40))
    # transformers would go on beyond the context
    unended = [plain_decoding(policy, [prompt], min(wanted, 32 - len(prompt)))[0] for prompt in prompts]
    eos = data.draw(st.sampled_from([None, *sorted({token for row in unended for token in row})]))
    expected = []
    for prompt, row in zip(prompts, unended, strict=True):
        end = row.index(eos, len(prompt)) + 1 if eos in row[len(prompt) :] else len(row)
        expected.append(row[:end])
    result = generate(policy, prompts, wanted, eos_token_ids=() if eos is None else (eos,))
    assert result.sequences == expected
    assert result.new_tokens == sum(map(len, expected)) - sum(map(len, prompts))


def test_eos_ends_a_row_as_in_transformers(make_policy: Make, plain_decoding: Decode, prompts: Sequences) -> None:
    policy = make_policy()
    eos = plain_decoding(policy, prompts, 30)[0][10]
    expected = plain_decoding(policy, prompts, 30, eos)
    assert len({len(row) - len(prompt) for row, prompt in zip(expected, prompts, strict=True)}) > 1
    assert generate(policy, prompts, 30, eos_token_ids=[eos]).sequences == expected


def test_a_prompt_that_ends_in_eos_goes_on(make_policy: Make) -> None:
    assert len(generate(make_policy(), [[1, 2]], 5, eos_token_ids=[2]).sequences[0]) > 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact_too(
    family: str, dtype: torch.dtype, make_policy: Make, plain_decoding: Decode, prompts: Sequences
) -> None:
    policy = make_policy(family).to(dtype)
    result = generate(policy, prompts, 20)
    assert result.sequences == plain_decoding(policy, prompts, 20)
    assert result.tie_forwards > 0
    assert generate(policy, prompts, 20, exact=False).tie_forwards == 0


@pytest.mark.slow
def test_of_tied_tokens_the_lower_is_taken(
    family: str, make_policy: Make, plain_decoding: Decode, prompts: Sequences
) -> None:
    policy = make_policy(family, tie_word_embeddings=False)
    with torch.no_grad():
        unembedding = policy.get_output_embeddings().weight
        unembedding[32:] = unembedding[:32]
    result = generate(policy, prompts, 20)
    assert result.sequences == plain_decoding(policy, prompts, 20)
    new = [token for row, prompt in zip(result.sequences, prompts, strict=True) for token in row[len(prompt) :]]
    assert max(new) < 32
    assert result.tie_forwards > 0


@pytest.mark.parametrize("exact", [True, False])
def test_rounding_turns_no_near_tie(
    exact: bool, make_policy: Make, plain_decoding: Decode, prompts: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With errors as large as were ever measured, on a model whose tokens tie in pairs."""
    policy = make_policy(tie_word_embeddings=False)
    with torch.no_grad():
        unembedding = policy.get_output_embeddings().weight
        unembedding[32:] = unembedding[:32] * (1 + 1e-7)
    generator = torch.Generator().manual_seed(0)

    def states(*args: Any, _real: Callable[..., HeadInputs] = policy.forward_cached) -> HeadInputs:
        inputs = _real(*args)
        rounding = 10 * torch.finfo(torch.float32).eps * torch.randn(inputs.final.shape, generator=generator)
        return replace(inputs, final=inputs.final * (1 + rounding))

    monkeypatch.setattr(policy, "forward_cached", states)
    result = generate(policy, prompts, 20, exact=exact)
    assert (result.sequences == plain_decoding(policy, prompts, 20)) == exact


class Prompter(GreedyVerifier):
    """Drafts from a given text instead of the heads: right, wrong, or right for a while."""

    right: Sequences
    spoil: Callable[[int, int], bool]  # by row and place among the drafts

    def verify(self, logits: Tensor, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
        self.rows = rows
        return super().verify(logits, rows)

    def propose(self, logits: Tensor) -> Tensor:
        first = self.drafts.shape[1]
        super().propose(logits)
        for b, row in enumerate([row for row in self.rows if not row.ended]):
            text = self.right[row.number] + [0] * self.drafts.shape[1]
            for place in range(first, self.drafts.shape[1]):
                token = text[len(row.tokens) + place]
                self.drafts[b, place] = (token + 1) % 64 if self.spoil(row.number, place) else token
        return self.drafts[:, first:]


@pytest.mark.parametrize("kept_per_row", [[3, 3, 3, 3], [0, 0, 0, 0], [0, 1, 2, 3]])
def test_each_row_keeps_its_longest_right_prefix(
    kept_per_row: list[int],
    make_policy: Make,
    plain_decoding: Decode,
    prompts: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy()
    monkeypatch.setattr(Prompter, "right", plain_decoding(policy, prompts, 25), raising=False)
    # After the first wrong draft the others are right again, and must not be taken.
    monkeypatch.setattr(Prompter, "spoil", lambda _, row, place: place == kept_per_row[row], raising=False)
    monkeypatch.setattr(decoding, "GreedyVerifier", Prompter)
    result = generate(policy, prompts, 25)
    assert result.sequences == Prompter.right
    rounds = [1 + -(-24 // (1 + kept)) for kept in kept_per_row]  # the prompt's forward gives one token
    assert result.row_forwards == sum(rounds)
    assert result.forwards == max(rounds)
    assert result.tokens_per_forward == 100 / sum(rounds)
    expected = [[place < kept for kept in kept_per_row] for place in range(3)]
    if kept_per_row == [3, 3, 3, 3]:
        assert result.acceptance == [1.0, 1.0, 1.0]
    elif kept_per_row == [0, 0, 0, 0]:
        assert result.acceptance == [0.0, 0.0, 0.0]
        assert result.tokens_per_forward == 1
    else:
        assert [0 < rate < 1 for rate in result.acceptance] == [any(row) for row in expected]


@pytest.mark.parametrize("head_kind", ["layer", "sequential", "mlp", "linear"])
def test_drafts_are_the_later_heads_own(
    family: str, head_kind: str, make_policy: Make, prompts: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last token kept, as without any cache: so the heads' caches forget what the trunk's does.

    But for sequential heads ≥ 2 after the first round: their caches keep what was computed from rejected drafts.
    """
    policy = make_policy(family, head_kind=head_kind)
    rounds: list[int] = []

    class Witness(GreedyVerifier):
        def verify(self, logits: Tensor, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
            if self.drafts.shape[1]:
                for row, drafts in zip(rows, self.drafts, strict=True):
                    text = torch.tensor([row.tokens + drafts.tolist()])
                    own = policy.head_logits(text)[0, len(row.tokens) - 2, 1:].argmax(dim=-1)  # [H-1]
                    exact = 1 if head_kind == "sequential" and row.number in rounds else len(own)
                    assert torch.equal(drafts[:exact], own[:exact])
                    rounds.append(row.number)
            return super().verify(logits, rows)

    monkeypatch.setattr(decoding, "GreedyVerifier", Witness)
    result = generate(policy, prompts, 20)
    assert len(rounds) == result.row_forwards - len(prompts)


def test_a_trained_model_needs_fewer_forwards(plain_decoding: Decode) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    policy = build_policy(config, vocab_size=16, horizon=4)
    pattern = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]).repeat(8)
    rows = torch.stack([pattern[start : start + 40] for start in range(8)])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(40):
        policy(rows).ce.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.eval()
    prompts = [pattern[:9].tolist(), [*pattern[2:5].tolist(), 5]]
    result = generate(policy, prompts, 48)
    assert result.sequences == plain_decoding(policy, prompts, 48)
    assert result.tokens_per_forward > 3
    assert min(result.acceptance) > 0.8


def test_without_speculation_it_is_plain_decoding(make_policy: Make, prompts: Sequences) -> None:
    policy = make_policy()
    ran: list[int] = []
    policy.heads.layers[0].register_forward_hook(lambda *_: ran.append(1))
    result = generate(policy, prompts, 20, speculate=False)
    assert not ran
    assert (result.forwards, result.row_forwards, result.tokens_per_forward) == (20, 80, 1.0)
    assert result.sequences == generate(policy, prompts, 20).sequences
    assert ran


def test_one_forward_a_round_and_no_grown_cache(make_policy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    widths: list[int] = []

    def states(*args: Any, _real: Callable[..., HeadInputs] = policy.forward_cached) -> HeadInputs:
        widths.append(args[2].shape[1])
        return _real(*args)

    monkeypatch.setattr(policy, "forward_cached", states)
    calls: list[int] = []
    policy.causal_lm.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    result = generate(policy, [[1, 2, 3], [4]], 30)
    assert len(calls) == result.forwards == len(widths)
    assert max(widths) <= 33 + 3, "no wider than the longest row and its drafts"


def test_tokens_are_told_as_they_come(make_policy: Make, prompts: Sequences) -> None:
    told: list[tuple[int, list[int], bool]] = []
    result = generate(make_policy(), prompts, 20, on_tokens=lambda *news: told.append(news))
    for number, (prompt, sequence) in enumerate(zip(prompts, result.sequences, strict=True)):
        mine = [(tokens, ended) for row, tokens, ended in told if row == number]
        assert prompt + list(itertools.chain(*(tokens for tokens, _ in mine))) == sequence
        assert [ended for _, ended in mine] == [False] * (len(mine) - 1) + [True]
    assert len(told) == result.row_forwards


def test_a_model_in_training_mode_is_refused(make_policy: Make) -> None:
    with pytest.raises(UserError, match=r"training mode.*eval\(\)"):
        generate(make_policy().train(), [[1]], 5)


@pytest.mark.parametrize("model_type", ["deepseek_v32", "longcat_flash", "gpt_neo"])
def test_a_trunk_that_keeps_more_than_keys_and_values_is_refused(model_type: str) -> None:
    policy = MtpForCausalLM.wrap(build(model_type), 2).eval()
    with pytest.raises(UserError, match=rf"{model_type} keeps others: decode with unwrap\(\)\.generate\(\)"):
        generate(policy, prompts=[[1, 2]], max_new_tokens=2)


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4_unified"])
def test_a_trunk_that_also_sees_writes_text(model_type: str) -> None:
    model = build(model_type)
    prompt = torch.tensor([[5, 6, 7]])
    how = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    plain = model.generate(prompt, **how)
    policy = MtpForCausalLM.wrap(model, 3).eval()
    assert generate(policy, prompts=prompt.tolist(), max_new_tokens=6).sequences == plain.tolist()


def test_positions_that_depend_on_the_length_are_refused(make_policy: Make) -> None:
    policy = make_policy()
    policy.config.trunk.rope_parameters = {"rope_type": "longrope"}
    with pytest.raises(UserError, match="longrope"):
        generate(policy, [[1]], 5)
