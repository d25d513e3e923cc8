"""Trains a byte-level BPE tokenizer on jsonl files, for models made from scratch.

    python tools/train_tokenizer.py --text FILE.jsonl [FILE.jsonl …] --vocab-size 4096 --output DIR

`AutoTokenizer.from_pretrained(DIR)` loads it, without a network. It round-trips any text, gives character offsets, and
its only special token, "<|endoftext|>", ends documents and fills rows; written out in a text it is plain text.
The same text gives the same files to the byte.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from corpus.staging import staged_folder
from wmtp_core.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_COLUMNS = ("text", "prompt", "completion", "chosen", "rejected")
_SMALLEST = 257  # every byte, and the end of a text


def train(files: Sequence[Path], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of exactly `vocab_size` tokens, learnt from the text columns of jsonl files.

    Raises:
        UserError: a file is missing or broken, or holds too little text for `vocab_size`.
    """
    if vocab_size < _SMALLEST:
        raise UserError(f"--vocab-size {vocab_size}: must be at least {_SMALLEST}, every byte and the end of a text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for file in files for text in _texts(file)), trainer)
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise UserError(f"--vocab-size {vocab_size}: the text yields only {size} tokens; lower it, or add to --text")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _texts(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise UserError(f"--text {file}: no such file; build a corpus with tools/build_corpus.py")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"--text {file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # broken JSON or broken UTF-8
                raise UserError(f"{where}: not JSON ({error}); repair or remove the line") from error
            texts = [row[name] for name in _COLUMNS if isinstance(row, dict) and isinstance(row.get(name), str)]
            if not texts:
                raise UserError(f"{where}: no text in any of {', '.join(_COLUMNS)}; add one")
            yield from texts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer.")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="what to learn from")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        with staged_folder(options.output, "tokenizer.json") as folder:
            train(options.text, options.vocab_size).save_pretrained(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {options.vocab_size} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
