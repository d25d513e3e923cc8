"""The sets that a run's settings name, prepared or found prepared, as batch sources."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import load_tokenizer, weights_fingerprint
from wmtp_train.data.conversations import ChatTemplate
from wmtp_train.data.packed.prepared import PreparedData, prepare, prepared_folder
from wmtp_train.data.packed.source import PackedSource
from wmtp_train.data.scores import load_scores, read_fingerprint
from wmtp_train.ranks.collective import START_AGAIN, rank0_first, run_on_all_ranks, run_on_rank0_and_broadcast
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings

TRAIN = "train"
"""The name of the training rows among the sets."""


@dataclass(frozen=True)
class DataSpec:
    """What `data` says, checked: every set's files, and how they become rows."""

    sets: dict[str, list[str]]
    tokenizer: PreTrainedTokenizerFast
    tokenizer_path: str
    sequence_length: int
    shuffle_seed: int
    cache_dir: Path
    num_proc: int | None
    vocab_size: int | None
    packing: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    chat: ChatTemplate | None = None

    def prepare(self, name: str) -> PreparedData:
        """Tokenize and pack a set, or open what an earlier call left."""
        return prepare(
            self.sets[name],
            self.tokenizer,
            self.tokenizer_path,
            self.sequence_length,
            self.shuffle_seed,
            self.cache_dir,
            self.num_proc,
            self.vocab_size,
            self.packing,
            self.columns,
            self.chat,
        )


def tokenizer_path(settings: Settings) -> str:
    """Return where the run's tokenizer is: `data.tokenizer`, or `model.source`.

    Raises:
        UserError: neither is set.
    """
    path = settings.data.tokenizer or settings.model.source
    if path is None:
        raise UserError("data.tokenizer is not set, and there is no model.source to take it from; name a folder")
    return path


def tokenizer_from_settings(settings: Settings) -> PreTrainedTokenizerFast:
    """Load the run's tokenizer.

    Raises:
        UserError: none is named, or it cannot be used.
    """
    return load_tokenizer(tokenizer_path(settings))


def data_spec(settings: Settings, tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None) -> DataSpec:
    """Return what `settings.data` says.

    Args:
        settings: the run's.
        tokenizer: of the run.
        vocab_size: of the model that will read the rows; a token beyond it is refused.

    Raises:
        UserError: no training files, or a set with a name that is taken.
    """
    data = settings.data
    if not data.train:
        raise UserError("data.train names no file; give files or folders of them, or run with --tiny")
    if TRAIN in data.evaluate:
        raise UserError('data.evaluate has a set called "train"; that is the training rows\' name, choose another')
    return DataSpec(
        {TRAIN: data.train, **data.evaluate},
        tokenizer,
        tokenizer_path(settings),
        data.sequence_length,
        data.shuffle_seed,
        data.cache_dir,
        data.tokenise_processes,
        vocab_size,
        data.packing,
        data.columns,
        ChatTemplate(tokenizer, read_template(data.chat_template), data.chat_template_arguments),
    )


def read_template(path: Path | None) -> str | None:
    """Return the chat template in a file, if one is named.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return None if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template {path}: it cannot be read ({error}): name a Jinja file") from error


def load_sources(spec: DataSpec, mesh: Mesh) -> dict[str, PackedSource]:
    """Prepare, or find prepared, every set. Every rank must call it.

    Rank 0 alone reads a corpus to know it again; the others do where they cannot see what it prepared.

    Raises:
        UserError: missing or broken files, tokens beyond the vocabulary.
    """
    what = "the data cannot be read"
    fingerprints = run_on_rank0_and_broadcast(
        mesh, lambda: {name: spec.prepare(name).fingerprint for name in spec.sets}, what
    )

    def load(name: str) -> PackedSource:
        folder = prepared_folder(spec.cache_dir, fingerprints[name])
        prepared = PreparedData.load(folder) if folder.is_dir() else spec.prepare(name)
        return PackedSource(prepared, prepared.fingerprint)

    sources = run_on_all_ranks(mesh, lambda: {name: load(name) for name in spec.sets}, what, START_AGAIN)
    for name, source in sources.items():
        if mesh.is_first and (cut_off := source.prepared.cut_off):
            many = f"{cut_off} of {source.prepared.documents} documents"
            print(f"warning: {name}: {many} are longer than a row, and lose their end", file=sys.stderr)
    return sources


def with_scores(sources: dict[str, PackedSource], settings: Settings, mesh: Mesh) -> dict[str, PackedSource]:
    """Put `reference.scores` beside every set, where the settings name them. Every rank must call it.

    Raises:
        UserError: they are missing, or of another corpus, tokenizer, packing or reference.
    """
    scores, source = settings.reference.scores, settings.reference.source
    if scores is None:
        return sources
    fingerprint = None
    if source is not None:
        fingerprint = run_on_rank0_and_broadcast(mesh, lambda: weights_fingerprint(source), f"reference {source}")

    def scored(name: str, packed: PackedSource) -> PackedSource:
        found = load_scores(scores / name, packed.prepared, fingerprint)
        return replace(packed, scores=found, fingerprint=read_fingerprint(scores / name))

    return rank0_first(
        mesh, lambda: {name: scored(name, packed) for name, packed in sources.items()}, f"scores {scores}"
    )
