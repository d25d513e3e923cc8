"""Text comes in whole characters, and the pieces are the whole."""

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from wmtp_models import MtpForCausalLM, TextStream, encode_prompt, stop_tokens

TEXT = "def f(): return 'é' # 日本語 🙂🇩🇪\n\tif x:\n  naïve  end "


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["def return if end"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's: words begin with a mark that is dropped at the start of a text, and rare letters are bytes."""
    vocabulary = {"<unk>": 0, "<eos>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocabulary |= {piece: 258 + place for place, piece in enumerate("▁abcdefghijklmnopqrstuvwxyz():'#\n\t")}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_are_the_whole_text(make: Callable[[], PreTrainedTokenizerFast], seed: int) -> None:
    tokenizer, draw = make(), random.Random(seed)
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    cut = len(tokenizer("def f()", add_special_tokens=False)["input_ids"])
    stream, pieces, place = TextStream(tokenizer, tokens[:cut]), [], cut
    while place < len(tokens):
        step = draw.randint(1, 4)
        pieces.append(stream.put(tokens[place : place + step]))
        place += step
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join([*pieces, stream.end()]) == TEXT.removeprefix("def f()")
    assert sum(map(bool, pieces)) > len(pieces) / 2, "it is a stream"


def test_an_unfinished_character_waits_for_the_end() -> None:
    tokenizer = byte_level()
    first, second = tokenizer("é", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, [])
    assert stream.put([first]) == ""
    assert stream.put([second]) == "é"
    assert stream.put([first]) == ""
    assert stream.end() == "\N{REPLACEMENT CHARACTER}"
    assert stream.end() == ""


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_piece_costs_the_same_however_long_the_text_is(
    make: Callable[[], PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, decoded = make(), []
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    real = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: decoded.append(len(ids)) or real(ids, **options))
    stream = TextStream(tokenizer, tokens)
    pieces = [stream.put([token]) for token in tokens * 20]
    assert "".join(pieces) == real(tokens * 21)[len(real(tokens)) :]
    assert max(decoded[4 * len(tokens) :]) < len(tokens)


def test_a_space_after_special_tokens_alone_is_kept() -> None:
    """To a tokenizer like Llama's it would be the start of a text, which it leaves out."""
    tokenizer = byte_fallback()
    a, space_b = (
        tokenizer("a b", add_special_tokens=False)["input_ids"][1:2],
        tokenizer.convert_tokens_to_ids(["▁", "b"]),
    )
    stream = TextStream(tokenizer, a)
    pieces = [stream.put(piece) for piece in (a, [tokenizer.eos_token_id], space_b, space_b)]
    assert pieces == ["a", "", " b", " b"]


@pytest.mark.parametrize(("own", "expected"), [(None, {0}), (7, {0, 7}), ([2, 7], {0, 2, 7})])
def test_a_text_ends_where_the_tokenizer_or_the_model_says(
    own: int | list[int] | None, expected: set[int], make_policy: Callable[..., MtpForCausalLM]
) -> None:
    policy, tokenizer = make_policy(), byte_level()
    policy.causal_lm.generation_config.eos_token_id = own
    assert stop_tokens(policy, tokenizer) == expected
    tokenizer.eos_token = None
    assert stop_tokens(policy, tokenizer) == expected - {0}


def test_special_tokens_are_not_text() -> None:
    tokenizer = byte_level()
    stream = TextStream(tokenizer, tokenizer("if")["input_ids"])
    assert stream.put([*tokenizer("end")["input_ids"], tokenizer.eos_token_id]) + stream.end() == "end"


def test_a_prompt_begins_a_document_and_does_not_end_it() -> None:
    tokenizer = byte_level()
    plain = encode_prompt(tokenizer, "def f(")
    assert tokenizer.decode(plain) == "def f("
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    assert tokenizer.encode("def f(") == [bos, *plain, eos]
    assert encode_prompt(tokenizer, "def f(") == [bos, *plain]
    assert encode_prompt(tokenizer, "") == []
