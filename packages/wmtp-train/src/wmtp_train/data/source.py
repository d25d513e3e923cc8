"""The port that a run reads through: batches, where they stand, what they are, and what they carry."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from wmtp_train.data.batch import Batch
from wmtp_train.ranks.mesh import Mesh


@dataclass(frozen=True)
class Contents:
    """What a source's rows carry beside their tokens.

    Attributes:
        rewards: some documents have a reward.
        pairs: some documents are the chosen and rejected texts of a pair.
        scores: every token has its reference loss.
        label_names: names of the token labels 1, 2, …; empty where tokens are not labeled.
    """

    rewards: bool = False
    pairs: bool = False
    scores: bool = False
    label_names: tuple[str, ...] = ()


class TrainingBatches(Protocol):
    """This rank's batches without end, on the CPU."""

    def __next__(self) -> Batch:
        """Return the next `[micro_batch, S]` batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches of *all* ranks stand, as JSON: the same on every rank."""
        ...


class BatchSource(Protocol):
    """A set of documents as batches.

    Attributes:
        fingerprint: what tells this set, and the scores beside it, from others.
        contents: what its rows carry.
        sequence_length: tokens in a row, S.
        row_count: rows of one epoch.
    """

    @property
    def fingerprint(self) -> dict[str, str]: ...

    @property
    def contents(self) -> Contents: ...

    @property
    def sequence_length(self) -> int: ...

    @property
    def row_count(self) -> int: ...

    def training_batches(
        self, mesh: Mesh, micro_batch: int, seed: int, state: dict[str, Any], workers: int = 0
    ) -> TrainingBatches:
        """Return this rank's batches after those that all ranks have been given before.

        Args:
            mesh: the processes, which share the rows of each global micro-batch.
            micro_batch: rows a rank.
            seed: of the order.
            state: of `TrainingBatches.state_dict`, saved by any number of processes; empty for a new run.
            workers: processes that read ahead.
        """
        ...

    def held_out_batches(self, mesh: Mesh, micro_batch: int, max_rows: int | None = None) -> Iterator[Batch]:
        """Return this rank's share of the set, once, as many batches on every rank.

        Args:
            mesh: the processes.
            micro_batch: rows a rank.
            max_rows: of the set, evenly spaced; None: all.
        """
        ...
