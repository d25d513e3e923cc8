"""Text comes in whole characters, and the pieces are the whole."""

import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from wmtp_models import TextStream

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


def test_special_tokens_are_not_text() -> None:
    tokenizer = byte_level()
    stream = TextStream(tokenizer, tokenizer("if")["input_ids"])
    assert stream.put([*tokenizer("end")["input_ids"], tokenizer.eos_token_id]) + stream.end() == "end"
