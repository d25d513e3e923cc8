"""What is in doubt, and the plain model that settles it, bit for bit."""

import weakref
from collections.abc import Callable

import pytest
import torch

from wmtp_models import MtpForCausalLM
from wmtp_models.generation.cache import RaggedCache
from wmtp_models.generation.greedy import GreedyVerifier, ReferenceDecoder, near_tie
from wmtp_models.generation.rows import GeneratedSequence

Make = Callable[..., MtpForCausalLM]


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 128), (torch.bfloat16, 16), (torch.float16, 16)])
def test_doubt_is_a_margin_relative_to_the_largest_logit(dtype: torch.dtype, units: int) -> None:
    bound = units * torch.finfo(dtype).eps
    near, far = -8 + 4 * bound, -8 + 16 * bound  # the largest is a negative one
    logits = torch.tensor([[-8.0, near, 0.0, 2 * bound], [-8.0, far, 0.0, 16 * bound]])
    assert near_tie(logits, dtype).tolist() == [True, False]


def test_ties_and_nan_are_in_doubt() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, float("nan"), 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert near_tie(logits, torch.float32).tolist() == [True, True, True, False]


@torch.no_grad()
def test_verification_differs_from_plain_decoding_by_less_than_doubt(family: str, make_policy: Make) -> None:
    policy = make_policy(family)
    tokens = torch.randint(64, (1, 60), generator=torch.Generator().manual_seed(2))
    cache, widths = RaggedCache(1, tokens.device), [4] * 15
    pieces = []
    for piece in tokens.split(widths, dim=1):
        mask, positions = cache.extend(torch.tensor([4]), 4)
        pieces.append(policy.forward_cached(piece, positions, mask, cache.layers).final)
    together = policy.get_output_embeddings()(torch.cat(pieces, dim=1))[0]  # [60, V]
    plain = []
    policy.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: plain.append(logits[0, -1]))
    decoder = ReferenceDecoder(policy.causal_lm)
    decoder.next_token(tokens[0].tolist(), prompt_length=4)
    one_by_one = torch.stack(plain)  # [57, V]
    error = (together[3:] - one_by_one).abs().amax(dim=-1) / one_by_one.abs().amax(dim=-1)
    assert 0 < error.max() < 128 / 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_decoder_computes_what_transformers_does(family: str, dtype: torch.dtype, make_policy: Make) -> None:
    policy = make_policy(family).to(dtype)
    prompt = torch.tensor([[5, 6, 7]])
    expected = policy.unwrap().generate(
        prompt, do_sample=False, max_new_tokens=20, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    seen: list[torch.Tensor] = []
    policy.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: seen.append(logits[:, -1]))
    decoder, sequence = ReferenceDecoder(policy.causal_lm), expected.sequences[0].tolist()
    asked = [3, 4, 9, 22]  # in steps, since it is asked now and then only
    assert [decoder.next_token(sequence[:n], 3) for n in asked] == [sequence[n] for n in asked]
    assert decoder.forwards == 20
    for ours, theirs in zip(seen, expected.logits, strict=True):
        assert torch.equal(ours.float(), theirs)


def test_a_settled_token_decides_how_many_drafts_are_kept(make_policy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceDecoder, "next_token", lambda *_: 2)
    choice = GreedyVerifier(make_policy().causal_lm, exact=True)
    choice.drafts = torch.tensor([[1, 3]])
    row = GeneratedSequence(0, [0], 1, 9, ())
    tie = torch.tensor([0.0, 1.0, 1.0, 0.0])  # argmax 1, settled as 2
    sure = torch.tensor([0.0, 0.0, 0.0, 1.0])
    kept, following = choice.verify(torch.stack([tie, sure, sure]).unsqueeze(0), [row])
    assert (kept.item(), following.item()) == (0, 2)
    choice.drafts = torch.tensor([[2, 3]])
    kept, following = choice.verify(torch.stack([tie, sure, sure]).unsqueeze(0), [row])
    assert (kept.item(), following.item()) == (2, 3)


def test_the_plain_cache_of_an_ended_row_is_dropped(make_policy: Make) -> None:
    choice = GreedyVerifier(make_policy().causal_lm, exact=True)
    rows = [GeneratedSequence(number, [5 + number], 1, 9, ()) for number in range(3)]
    tie = torch.tensor([0.0, 1.0, 1.0, 0.0])
    for live in (rows, rows[1:2]):
        choice.drafts = torch.empty(len(live), 0, dtype=torch.long)
        plain = weakref.WeakSet(choice._plain.values())
        for row in live:
            row.tokens += [1] * len(plain)
        choice.verify(tie.expand(len(live), 1, 4), live)
    assert len(plain) == 1


def test_nothing_beyond_the_room_or_after_a_wrong_draft_is_settled(
    make_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceDecoder, "next_token", lambda *_: pytest.fail("asked in vain"))
    choice = GreedyVerifier(make_policy().causal_lm, exact=True)
    tie, sure = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    logits = torch.stack([torch.stack([sure, tie]), torch.stack([sure, tie])])
    choice.drafts = torch.tensor([[2], [1]])
    kept, _ = choice.verify(logits, [GeneratedSequence(0, [0], 1, 2, ()), GeneratedSequence(1, [0], 1, 9, ())])
    assert kept.tolist() == [1, 0]
