"""Batches for a rank, in training and in evaluation.

A global micro-batch of R ranks and m rows each is R·m consecutive rows of one order that all ranks share; rank r holds
its rows r·m … r·m+m−1. So another number of processes assigns the same rows differently, and no row is seen twice.
"""

import itertools
from collections.abc import Iterator

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from wmtp_train.data.batch import Batch, PackedRows
from wmtp_train.data.packed.order import stream_rows
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.ranks.preemption import ignore_stop_signals_unless_parent


def rank_rows(
    num_rows: int, micro_batch: int, rank: int, world: int, seed: int, consumed_rows: int
) -> Iterator[list[int]]:
    """Yield the rows of each micro-batch of a rank, without end, after `consumed_rows` rows over all ranks."""
    for start in itertools.count(consumed_rows + rank * micro_batch, world * micro_batch):
        yield stream_rows(num_rows, seed, start, start + micro_batch).tolist()


class TrainLoader(Iterator[Batch]):
    """An endless iterator of this rank's training batches, [micro_batch, S] each.

    Args:
        prepared: the rows.
        scores: the reference's losses on them, or None.
        micro_batch: rows of a batch.
        rank, world: of this process.
        seed: of the order.
        consumed_rows: given to all ranks before; the loader goes on exactly there, with any world size and micro-batch.
        workers: processes that prefetch two batches each; with 0 a batch is made when it is asked for.
        pin_memory: put batches into page-locked memory.
    """

    def __init__(
        self,
        prepared: PreparedData,
        scores: datasets.Dataset | None,
        micro_batch: int,
        rank: int,
        world: int,
        seed: int,
        consumed_rows: int,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._consumed_rows = consumed_rows
        self._global_micro_batch = world * micro_batch
        loader = DataLoader(
            PackedRows(prepared, scores),
            batch_size=None,  # the sampler's lists of rows are the batches
            sampler=rank_rows(len(prepared.rows), micro_batch, rank, world, seed, consumed_rows),
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=ignore_stop_signals_unless_parent,
            generator=torch.Generator(),  # its own: or a resume would draw once more from the global one
        )
        self._batches = iter(loader)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._consumed_rows += self._global_micro_batch
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return how many rows all ranks have been given since the run began, whatever was prefetched."""
        return {"consumed_rows": self._consumed_rows}


def evaluation_batches(
    prepared: PreparedData,
    scores: datasets.Dataset | None,
    micro_batch: int,
    rank: int,
    world: int,
    max_rows: int | None = None,
) -> Iterator[Batch]:
    """Yield every row (or `max_rows` evenly spaced ones) once over the ranks, as many [micro_batch, S] batches on each.

    What is missing from the last global batch is filled with rows of no meaning: row id -1, all labels -100, rewards
    NaN, pairs 0.
    """
    packed_rows = PackedRows(prepared, scores)
    num_rows = min(len(packed_rows), max_rows or len(packed_rows))
    for start in range(0, num_rows, world * micro_batch):
        places = start + rank * micro_batch + np.arange(micro_batch)
        batch = packed_rows[places.clip(max=num_rows - 1) * len(packed_rows) // num_rows]
        padding = torch.from_numpy(places >= num_rows)
        batch.row_ids[padding] = -1
        batch.labels[padding] = -100
        if batch.rewards is not None:
            batch.rewards[padding] = torch.nan
        if batch.pairs is not None:
            batch.pairs[padding] = 0
        yield batch
