import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from ranks_that_score import prepare_and_score
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ranks import on_ranks
from wmtp_train.data.packed.prepared import PreparedData, prepare

datasets.disable_progress_bars()

WORDS = "def one(two): return three\nalpha beta gamma delta — ünïcödé 数\n"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges: tokens of one to about eight bytes, EOS `<eos>`, no BOS of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [WORDS] * 20,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows into a jsonl file; a row that is a string is written as it is."""

    def write(*rows: dict[str, Any] | str, name: str = "corpus.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def make_prepared(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, jsonl: Callable[..., Path]) -> Any:
    def make(*rows: dict[str, Any], sequence_length: int = 8, seed: int = 0, packing: bool = True) -> PreparedData:
        files, cache = [jsonl(*rows)], tmp_path / "cache"
        return prepare(files, tokenizer, "tiny", sequence_length, seed, cache, packing=packing)

    return make


@pytest.fixture
def prepared(make_prepared: Any) -> PreparedData:
    """Ten documents of texts in rows of 8 tokens: some of several documents, some documents over several rows."""
    return make_prepared(*[{"text": f"alpha {n} beta " * (1 + n % 4)} for n in range(10)])


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder in which two processes have prepared one corpus at once and scored it together."""
    folder = tmp_path_factory.mktemp("two_ranks")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "corpus.txt").write_text(WORDS * 20)
    on_ranks(folder, 2, prepare_and_score, folder)
    return folder
