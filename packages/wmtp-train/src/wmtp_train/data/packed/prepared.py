"""Prepared data: a corpus, tokenised and put into rows once, in an Arrow folder that is found again by its content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_train.atomic_io import commit_dir_once, write_json
from wmtp_train.data.conversations import ChatTemplate
from wmtp_train.data.corpus import check_columns, read_texts
from wmtp_train.data.documents import noise_kinds, tokenise
from wmtp_train.data.files import content_fingerprint, describe, expand
from wmtp_train.data.packed.packing import pack, packing_fingerprint
from wmtp_train.data.packed.storage import open_arrow, write_arrow


@dataclass(frozen=True)
class PreparedData:
    """Packed rows and what is known of them.

    `rows` has the columns that `packing.pack` names; `fingerprint` the SHA-256 (hex) of "corpus", "tokenizer" and
    "packing"; `label_names[k - 1]` is the name of token label k; `tokens` counts the tokens without the padding,
    and `cut_off` the documents that are longer than the row that each has.
    """

    path: Path
    rows: datasets.Dataset
    fingerprint: dict[str, str]
    sequence_length: int
    label_names: list[str]
    documents: int
    tokens: int
    max_token_id: int
    cut_off: int = 0

    @property
    def has_rewards(self) -> bool:
        """Whether some document has a reward."""
        return "rewards" in self.rows.column_names

    @property
    def has_pairs(self) -> bool:
        """Whether some documents are the chosen and rejected texts of a pair."""
        return "pairs" in self.rows.column_names

    @staticmethod
    def load(path: str | Path) -> "PreparedData":
        """Open a folder that `prepare` wrote, memory-mapped.

        Raises:
            UserError: it is missing, damaged or no such folder.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"prepared data {path}: no such folder: make it with `wmtp prepare`")
        if not (path / "manifest.json").is_file():
            raise UserError(
                f"prepared data {path}: no manifest.json, so `wmtp prepare` did not write this folder: "
                "name the one that it printed"
            )
        fix = "remove the folder, and it is made again"
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            rows = open_arrow(path / "rows.arrow", manifest.pop("rows"), fix)
            return PreparedData(path=path, rows=rows, label_names=manifest.pop("kinds"), **manifest)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"prepared data {path}: its manifest.json is damaged or of an older version: {fix}"
            ) from error


def prepare(
    files: Iterable[str | Path],
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_path: str | Path,
    sequence_length: int,
    seed: int,
    cache_dir: str | Path,
    num_proc: int | None = None,
    vocab_size: int | None = None,
    packing: bool = True,
    columns: Mapping[str, str] | None = None,
    chat: ChatTemplate | None = None,
) -> PreparedData:
    """Tokenize and pack corpus files (paths or globs) into `cache_dir`, or open what an earlier call left there.

    Without `packing` each row is one document. The content of the files, the tokenizer, its chat template and the
    packing decide, never names or dates. Any number of processes may call it at once: each writes aside, the first to
    rename wins. `tokenizer_path` is for messages; `vocab_size` is the model's; `columns` see `read_texts`; `chat` is
    another template than the tokenizer's own.

    Raises:
        UserError: something is wrong with the corpus (`files`, `corpus`), the tokenizer or the lengths.
    """
    columns, chat = columns or {}, chat or ChatTemplate(tokenizer, None, {})
    check_columns(columns)
    paths = expand(files)
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {tokenizer_path}: not a fast tokenizer, so it knows no character offsets: convert it"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {tokenizer_path}: it has no EOS token to end documents with: set its eos_token")
    fingerprint = {
        "packing": packing_fingerprint(sequence_length, seed, packing),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "corpus": _corpus_fingerprint(paths, columns, chat),
    }
    folder = prepared_folder(cache_dir, fingerprint)
    if not folder.is_dir():
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache_dir, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as aside:
            built = _build(
                Path(aside), paths, columns, chat, tokenizer, sequence_length, seed, packing, fingerprint, num_proc
            )
            commit_dir_once(built, folder)
    prepared = PreparedData.load(folder)
    if vocab_size is not None and prepared.max_token_id >= vocab_size:
        raise UserError(
            f"tokenizer {tokenizer_path}: the corpus becomes token ids up to {prepared.max_token_id}, but the model's "
            f"vocabulary ends at {vocab_size - 1}: use the model's own tokenizer, also for rows that are tokens already"
        )
    return prepared


def prepared_folder(cache_dir: str | Path, fingerprint: dict[str, str]) -> Path:
    """Return where the data set of that fingerprint is, or will be."""
    name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    return Path(cache_dir) / name


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return SHA-256 (hex) of what decides the tokens of a text; the truncation and padding of the last call do not."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps([backend, special], sort_keys=True).encode()).hexdigest()


def _corpus_fingerprint(paths: list[Path], columns: Mapping[str, str], chat: ChatTemplate) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(content_fingerprint(path))
    if columns:
        digest.update(json.dumps(dict(columns), sort_keys=True).encode())
    template = chat.template or chat.tokenizer.chat_template
    if template is not None or chat.arguments:
        digest.update(json.dumps([template, chat.arguments], sort_keys=True).encode())
    return digest.hexdigest()


def _build(
    aside: Path,
    paths: list[Path],
    columns: Mapping[str, str],
    chat: ChatTemplate,
    tokenizer: PreTrainedTokenizerFast,
    sequence_length: int,
    seed: int,
    packing: bool,
    fingerprint: dict[str, str],
    num_proc: int | None,
) -> Path:
    """Write the whole data set under `aside` and return the folder to commit; the rest of `aside` is scaffolding."""
    write_arrow(aside / "texts.arrow", read_texts(paths, columns))
    texts = datasets.Dataset.from_file(str(aside / "texts.arrow"))
    kinds = noise_kinds(texts)
    documents = tokenise(texts, tokenizer, kinds, aside / "documents.arrow", num_proc, chat)
    table = documents.with_format("arrow")[:]
    if not packing and pc.any(pc.not_equal(table["pair"], 0)).as_py():
        raise UserError(
            f"corpus {describe(paths)}: the two texts of a pair are compared within one row: set data.packing to true"
        )
    whole = pc.list_value_length(table["input_ids"]).to_numpy()
    lengths = whole if packing else np.minimum(whole, sequence_length)
    if not np.any(lengths > np.maximum(table["masked"].to_numpy(), 1)):
        raise UserError(
            f"corpus {describe(paths)}: every label is ignored, no document has a token to learn after its first: "
            "check the texts and what the tokenizer makes of them"
        )
    folder = aside / "data"
    folder.mkdir()
    write_arrow(folder / "rows.arrow", pack(documents, sequence_length, seed, tokenizer.eos_token_id, packing=packing))
    manifest = {
        "fingerprint": fingerprint,
        "rows": len(datasets.Dataset.from_file(str(folder / "rows.arrow"))),
        "sequence_length": sequence_length,
        "kinds": kinds,
        "documents": len(documents),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "cut_off": int((whole > lengths).sum()),
        "max_token_id": pc.max(pc.list_flatten(table["input_ids"])).as_py(),
    }
    write_json(folder / "manifest.json", manifest)
    return folder
