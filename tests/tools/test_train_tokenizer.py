import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import train_tokenizer

TEXTS = [
    "",
    "def f(x):\n\treturn x  # two  spaces\n",
    "\r\n\x00\x0c trailing \n\n",
    "é 漢字 🙂 e\u0301 \u2028 \ufeff",
    "written out: <|endoftext|>.",
]


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tokenizer") / "made"
    arguments = ["--text", str(corpus / "train.jsonl"), "--vocab-size", "1024", "--output", str(output)]
    assert train_tokenizer.main(arguments) == 0
    return output


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_has_the_size_asked_for_and_one_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 1024
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_offsets_cover_the_text_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "def é(x):\n    return [x, '漢']\n"
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    assert len(offsets) == len(encoded["input_ids"])
    assert {position for start, end in offsets for position in range(start, end)} == set(range(len(text)))
    assert offsets == sorted(offsets)
    for number, (start, end) in zip(encoded["input_ids"], offsets, strict=True):
        if text[start:end].isascii():
            assert tokenizer.decode([number]) == text[start:end]


def test_learns_words_of_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer("    def __init__(self")["input_ids"]) <= 8


@pytest.mark.slow
def test_same_bytes_again_in_another_process(corpus: Path, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, train_tokenizer.__file__, "--text", str(corpus / "train.jsonl")]
    command += ["--vocab-size", "1024", "--output", "again"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "again: 1024 tokens\n"
    again = {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()}
    assert again == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "tokenizer.json" in again


@pytest.mark.parametrize(
    ("content", "vocab_size", "message"),
    [
        (None, 300, "--text {file}: no such file; build a corpus with tools/build_corpus.py"),
        ('{"text": "fine"}\n{"text": \n', 300, "--text {file}, line 2: not JSON"),
        (b'{"text": "\xff"}\n', 300, "--text {file}, line 1: not JSON"),
        ('{"code": "x"}\n', 300, "--text {file}, line 1: no text in any of text, prompt,"),
        ("[1]\n", 300, "--text {file}, line 1: no text in any of text, prompt,"),
        ('{"text": "fine"}\n', 300, "--vocab-size 300: the text yields only 260 tokens; lower it, or add to --text"),
        ('{"text": "fine"}\n', 256, "--vocab-size 256: must be at least 257"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes | None, vocab_size: int, message: str
) -> None:
    file = tmp_path / "corpus.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ["--text", str(file), "--vocab-size", str(vocab_size), "--output", str(tmp_path / "out" / "made")]
    assert train_tokenizer.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.format(file=file))
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_learns_from_every_text_column(tmp_path: Path) -> None:
    rows = [{"prompt": "ab" * 9, "completion": "cd" * 9}, {"chosen": "ef" * 9, "rejected": "gh" * 9}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = train_tokenizer.train([file], 257 + 4).get_vocab()
    assert {"ab", "cd", "ef", "gh"} <= set(vocabulary)
