"""Packed rows as a batch source."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.loader import TrainLoader, evaluation_batches
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.source import Contents
from wmtp_train.ranks.mesh import Mesh


@dataclass(frozen=True)
class PackedSource:
    """Packed rows and, row by row, the reference's losses on them where they were scored ahead.

    Attributes:
        prepared: the rows.
        fingerprint: "corpus", "tokenizer" and "packing"; with scores also what made these ("reference", "dtype",
            "computed_in").
        scores: the column `reference_ce`, or None.
    """

    prepared: PreparedData
    fingerprint: dict[str, str]
    scores: datasets.Dataset | None = None

    @property
    def contents(self) -> Contents:
        """What the rows carry beside their tokens."""
        prepared = self.prepared
        return Contents(prepared.has_rewards, prepared.has_pairs, self.scores is not None, tuple(prepared.label_names))

    @property
    def sequence_length(self) -> int:
        """Tokens in a row, S."""
        return self.prepared.sequence_length

    @property
    def row_count(self) -> int:
        """Rows of one epoch."""
        return len(self.prepared.rows)

    def training_batches(
        self, mesh: Mesh, micro_batch: int, seed: int, state: dict[str, Any], workers: int = 0
    ) -> TrainLoader:
        """Return this rank's batches after `state`; see `BatchSource`."""
        return TrainLoader(
            self.prepared,
            self.scores,
            micro_batch,
            mesh.data_rank,
            mesh.data_world,
            seed,
            consumed_rows=state.get("consumed_rows", 0),
            workers=workers,
            pin_memory=mesh.device.type == "cuda",
        )

    def held_out_batches(self, mesh: Mesh, micro_batch: int, max_rows: int | None = None) -> Iterator[Batch]:
        """Return this rank's share of the set, once; see `BatchSource`."""
        return evaluation_batches(self.prepared, self.scores, micro_batch, mesh.data_rank, mesh.data_world, max_rows)
