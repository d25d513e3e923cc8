import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import fields

import datasets
import pytest
import torch

from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.loader import TrainLoader, evaluation_batches, rank_rows
from wmtp_train.data.packed.prepared import PreparedData


def dealt(world: int, micro_batch: int, global_batches: int, consumed: int = 0) -> list[int]:
    """The rows of all ranks, global micro-batch after global micro-batch, rank after rank."""
    ranks = [rank_rows(10, micro_batch, rank, world, 3, consumed) for rank in range(world)]
    return [row for _ in range(global_batches) for rank in ranks for row in next(rank)]


GLOBAL_BATCHES_OF_16 = [(world, 16 // (world * accumulation)) for world in (1, 2, 4) for accumulation in (1, 2, 4)]


@pytest.mark.parametrize(("world", "micro_batch"), [*GLOBAL_BATCHES_OF_16, (2, 6), (3, 4)])
def test_any_split_deals_the_same_rows_in_the_same_order(world: int, micro_batch: int) -> None:
    one_by_one = dealt(1, 1, 48)
    assert dealt(world, micro_batch, 48 // (world * micro_batch)) == one_by_one
    for epoch in range(4):
        assert sorted(one_by_one[epoch * 10 : epoch * 10 + 10]) == list(range(10))


@pytest.mark.parametrize("consumed", [0, 4, 8, 24, 9, 10**12])
def test_consumed_samples_say_where_to_go_on_with_another_split(consumed: int) -> None:
    assert dealt(2, 3, 4, consumed) == dealt(1, 1, 24, consumed)
    if consumed < 100:
        assert dealt(2, 3, 4, consumed) == dealt(1, 1, 24 + consumed)[consumed:]


def same(first: Batch, second: Batch) -> bool:
    assert first.bounds is not None
    assert second.bounds is not None
    names = [field.name for field in fields(Batch) if field.name != "bounds"]
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    pairs.append((first.bounds.cu_seq_lens, second.bounds.cu_seq_lens))
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_goes_on_where_another_one_stopped(prepared: PreparedData, workers: int) -> None:
    scores = datasets.Dataset.from_dict({"reference_ce": [[float(n)] * 8 for n in range(len(prepared.rows))]})
    whole = TrainLoader(prepared, scores, 2, 1, 2, seed=0, consumed_rows=0)
    batches = list(itertools.islice(whole, 3 * len(prepared.rows)))
    assert whole.state_dict()["consumed_rows"] == 4 * len(batches)
    assert {tuple(batch.input_ids.shape) for batch in batches} == {(2, 8)}
    begun = TrainLoader(prepared, scores, 2, 1, 2, seed=0, consumed_rows=0, workers=workers)
    for _ in range(5):
        next(begun)
    assert begun.state_dict()["consumed_rows"] == 20, "prefetched batches do not count"
    resumed = TrainLoader(prepared, scores, 2, 1, 2, 0, begun.state_dict()["consumed_rows"], workers=workers)
    assert all(same(batch, again) for batch, again in zip(batches[5:], resumed, strict=False))
    assert all(
        batch.reference_ce is not None and (batch.reference_ce[:, 0] == batch.row_ids).all() for batch in batches
    )


def test_a_loader_leaves_the_global_random_state_alone(prepared: PreparedData) -> None:
    before = torch.get_rng_state()
    next(TrainLoader(prepared, None, 2, 0, 1, seed=0, consumed_rows=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 4), (2, 3), (3, 50)])
def test_evaluation_holds_every_row_once_in_equal_shares(
    make_prepared: Callable[..., PreparedData], world: int, micro_batch: int
) -> None:
    texts = [{"text": f"alpha {n} beta gamma", "reward": n} for n in range(12)]
    prepared = make_prepared(*texts, {"chosen": "one", "rejected": "two"})
    ranks = [list(evaluation_batches(prepared, None, micro_batch, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert {tuple(batch.input_ids.shape) for batch in batches} == {(micro_batch, 8)}
    row_ids = torch.cat([batch.row_ids for batch in batches])
    rows = len(prepared.rows)
    padding = len(row_ids) - rows
    assert padding < world * micro_batch
    assert Counter(row_ids.tolist()) == Counter([*range(rows), *[-1] * padding])
    assert row_ids[:rows].tolist() == list(range(rows))
    labels, rewards, pairs = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "rewards", "pairs")
    )
    assert labels[:rows].tolist() == prepared.rows[:]["labels"]
    assert (labels[rows:] == -100).all()
    assert rewards[rows:].isnan().all()
    assert not pairs[rows:].any()
    assert pairs[:rows].any()
