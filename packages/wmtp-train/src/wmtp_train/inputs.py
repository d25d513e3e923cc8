"""What a run reads: the tokenizer, the packed training rows and the held-out sets, with scores where there are any."""

from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import load_tokenizer, weights_fingerprint
from wmtp_train.data.prepared import PreparedData, prepare
from wmtp_train.data.scores import load_scores
from wmtp_train.processes import first_rank_first
from wmtp_train.settings import Settings


@dataclass(frozen=True)
class ScoredData:
    """Packed rows and, row by row, the reference's losses on them where they were scored ahead."""

    prepared: PreparedData
    scores: datasets.Dataset | None = None


@dataclass(frozen=True)
class RunInputs:
    """Everything that a run reads but the models."""

    tokenizer: PreTrainedTokenizerFast
    train: ScoredData
    evaluate: dict[str, ScoredData]

    def sets(self) -> dict[str, ScoredData]:
        """Every set by name, the training rows under "train"."""
        return {"train": self.train, **self.evaluate}


def open_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """The run's tokenizer: `data.tokenizer`, or the one of `model.source`."""
    path = settings.data.tokenizer or settings.model.source
    if path is None:
        raise UserError("data.tokenizer is not set, and there is no model.source to take it from; name a folder")
    return load_tokenizer(path)


def open_inputs(settings: Settings, with_scores: bool, vocab_size: int | None = None) -> RunInputs:
    """Prepare (or find prepared) every set that the settings name.

    Args:
        with_scores: also open `reference.scores`, and check that they belong to these rows and this reference.
        vocab_size: of the model that will read them; a token beyond it is refused.

    Raises:
        UserError: missing or broken files, tokens beyond the vocabulary, and scores of another corpus, tokenizer,
            packing or reference.
    """
    tokenizer = open_tokenizer(settings)
    if not settings.data.train:
        raise UserError("data.train names no file; give jsonl, txt or parquet files, or run with --tiny")
    if "train" in settings.data.evaluate:
        raise UserError('data.evaluate has a set called "train"; that is the training rows\' name, choose another')
    scores = settings.reference.scores if with_scores else None
    fingerprint = None
    if scores is not None and settings.reference.source is not None:
        fingerprint = weights_fingerprint(settings.reference.source)

    def open_set(name: str, files: list[str]) -> ScoredData:
        prepared = first_rank_first(
            lambda: prepare(
                files,
                tokenizer,
                settings.data.tokenizer or str(settings.model.source),
                settings.data.sequence_length,
                settings.data.shuffle_seed,
                settings.data.cache_dir,
                settings.data.tokenise_processes,
                vocab_size,
            ),
            f"data of the set {name!r} cannot be read",
        )
        if scores is None:
            return ScoredData(prepared)
        folder = Path(scores) / name
        return ScoredData(
            prepared, first_rank_first(lambda: load_scores(folder, prepared, fingerprint), f"scores {folder}")
        )

    evaluate = {name: open_set(name, files) for name, files in settings.data.evaluate.items()}
    return RunInputs(tokenizer, open_set("train", settings.data.train), evaluate)
