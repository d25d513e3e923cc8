"""What a run reads: the tokenizer, the packed training rows and the held-out sets, with scores where there are any."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from wmtp_models import load_tokenizer, weights_fingerprint
from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.loader import TrainLoader, evaluation_batches
from wmtp_train.data.packed.prepared import PreparedData, prepare, prepared_folder
from wmtp_train.data.scores import load_scores, read_fingerprint
from wmtp_train.ranks.collective import broadcast_object, run_on_all_ranks, run_on_rank0_and_broadcast
from wmtp_train.ranks.lifecycle import device, fail_on_all_ranks, raise_if_preempted, rank0_first
from wmtp_train.settings.schema import Settings

_REMEDY = "mend that, and start again"


@dataclass(frozen=True)
class ScoredData:
    """Packed rows and, row by row, the reference's losses on them where they were scored ahead.

    `fingerprint` tells the rows from others ("corpus", "tokenizer", "packing"), and with scores also what made these
    ("reference", "dtype", "computed_in").
    """

    prepared: PreparedData
    fingerprint: dict[str, str]
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


def tokenizer_from_settings(settings: Settings) -> PreTrainedTokenizerFast:
    """The run's tokenizer: `data.tokenizer`, or the one of `model.source`."""
    path = settings.data.tokenizer or settings.model.source
    if path is None:
        fail_on_all_ranks("data.tokenizer is not set, and there is no model.source to take it from; name a folder")
    return run_on_all_ranks(lambda: load_tokenizer(path), f"tokenizer {path}", "mend that, and start again")


def load_inputs(settings: Settings, with_scores: bool, vocab_size: int | None = None) -> RunInputs:
    """Prepare (or find prepared) every set that the settings name.

    Args:
        with_scores: also open `reference.scores`, and check that they belong to these rows and this reference.
        vocab_size: of the model that will read them; a token beyond it is refused.

    Raises:
        UserError: missing or broken files, tokens beyond the vocabulary, and scores of another corpus, tokenizer,
            packing or reference.
    """
    tokenizer = tokenizer_from_settings(settings)
    if not settings.data.train:
        fail_on_all_ranks("data.train names no file; give jsonl, txt or parquet files, or run with --tiny")
    if "train" in settings.data.evaluate:
        fail_on_all_ranks('data.evaluate has a set called "train"; that is the training rows\' name, choose another')
    is_first = dist.get_rank() == 0
    scores = settings.reference.scores if with_scores else None
    fingerprint = None
    if scores is not None and settings.reference.source is not None:
        source = settings.reference.source
        fingerprint = run_on_rank0_and_broadcast(lambda: weights_fingerprint(source), f"reference {source}")

    def open_set(name: str, files: list[str]) -> ScoredData:
        def build() -> PreparedData:
            return prepare(
                files,
                tokenizer,
                settings.data.tokenizer or str(settings.model.source),
                settings.data.sequence_length,
                settings.data.shuffle_seed,
                settings.data.cache_dir,
                settings.data.tokenise_processes,
                vocab_size,
            )

        # Rank 0 alone reads the corpus to know it again; the others do where they cannot see what it prepared.
        what = f"data of the set {name!r} cannot be read"
        built = run_on_all_ranks(lambda: build() if is_first else None, what, _REMEDY)
        folder = prepared_folder(settings.data.cache_dir, broadcast_object(built and built.fingerprint))
        prepared = run_on_all_ranks(
            lambda: built or (PreparedData.load(folder) if folder.is_dir() else build()), what, _REMEDY
        )
        if scores is None:
            return ScoredData(prepared, prepared.fingerprint)
        folder = Path(scores) / name
        found = rank0_first(lambda: load_scores(folder, prepared, fingerprint), f"scores {folder}")
        return ScoredData(prepared, read_fingerprint(folder), found)

    evaluate = {name: open_set(name, files) for name, files in settings.data.evaluate.items()}
    return RunInputs(tokenizer, open_set("train", settings.data.train), evaluate)


def training_batches(data: ScoredData, settings: Settings, micro_batch: int, consumed_rows: int) -> Iterator[Batch]:
    """This rank's batches without end, on the CPU, after the rows that all ranks have been given before."""
    return TrainLoader(
        data.prepared,
        data.scores,
        micro_batch,
        dist.get_rank(),
        dist.get_world_size(),
        settings.seed,
        consumed_samples=consumed_rows,
        workers=settings.data.workers,
        pin_memory=device().type == "cuda",
    )


def held_out_batches(data: ScoredData, settings: Settings, micro_batch: int) -> Iterator[Batch]:
    """This rank's share of a held-out set, where it computes; between batches a stop signal ends it."""
    rows = settings.data.evaluation_rows
    for batch in evaluation_batches(
        data.prepared, data.scores, micro_batch, dist.get_rank(), dist.get_world_size(), rows
    ):
        raise_if_preempted()
        yield batch.to(device())
