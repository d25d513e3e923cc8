from collections.abc import Callable
from dataclasses import fields

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

from wmtp_train.data.batch import Batch, PackedRows, collate
from wmtp_train.data.packed.prepared import PreparedData

ROWS = pa.table(
    {
        "input_ids": pa.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 9]], pa.list_(pa.int32())),
        "labels": pa.array([[1, -100, 3, 4, 5], [-100, 7, 8, -100, -100]], pa.list_(pa.int32())),
        "document_lengths": pa.array([[2, 3], [1, 2, 2]], pa.list_(pa.int32())),
        "document_ids": pa.array([[7, 0], [0, 3, -1]], pa.list_(pa.int32())),
        "noise": pa.array([[0, 0, 1, 2, 0], [0, 1, 1, 0, 0]], pa.list_(pa.int8())),
        "rewards": pa.array([[1.0, np.nan], [np.nan, 0.5, np.nan]], pa.list_(pa.float32())),
        "pairs": pa.array([[0, 4], [4, -4, 0]], pa.list_(pa.int32())),
    }
)
CE = pa.table({"reference_ce": pa.array([[0, 1.5, 0, 2, 3], [0, 0, 4, 0, 0]], pa.list_(pa.float32()))})
EXPECTED = {
    "input_ids": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 9]],
    "labels": [[1, -100, 3, 4, 5], [-100, 7, 8, -100, -100]],
    "position_ids": [[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]],
    "document_ids": [[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]],
    "row_ids": [12, 3],
    "reference_ce": [[0, 1.5, 0, 2, 3], [0, 0, 4, 0, 0]],
    "token_labels": [[0, 0, 1, 2, 0], [0, 1, 1, 0, 0]],
    "rewards": [[1, 1, -1, -1, -1], [-1, 0.5, 0.5, -1, -1]],  # -1 for NaN, which equals nothing
    "pairs": [[0, 0, 4, 4, 4], [4, -4, -4, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
}

TENSORS = [field.name for field in fields(Batch) if field.name != "bounds"]


def test_collate_spreads_documents_over_their_tokens() -> None:
    batch = collate(ROWS, np.array([12, 3]), CE)
    assert batch.bounds is not None
    assert batch.bounds.cu_seq_lens.tolist() == [0, 2, 5, 6, 8, 10]
    assert batch.bounds.cu_seq_lens.dtype == torch.int32
    assert batch.bounds.max_length == 3
    for field in TENSORS:
        values = getattr(batch, field)
        assert values.dtype == (torch.float32 if field in ("reference_ce", "rewards") else torch.int64)
        assert values.nan_to_num(-1).tolist() == EXPECTED[field], field


def test_what_the_data_lacks_is_none() -> None:
    batch = collate(ROWS.drop_columns(["noise", "rewards", "pairs"]), np.array([0, 1]))
    assert [field.name for field in fields(Batch) if getattr(batch, field.name) is None] == [
        "reference_ce",
        "token_labels",
        "rewards",
        "pairs",
    ]


def test_half_precision_scores_arrive_as_float32() -> None:
    half = pa.table({"reference_ce": CE["reference_ce"].cast(pa.list_(pa.float16()))})
    scores = collate(ROWS, np.array([0, 1]), half).reference_ce
    assert scores is not None
    assert scores.dtype == torch.float32
    assert scores.tolist() == EXPECTED["reference_ce"]


def test_to_moves_every_tensor_and_leaves_none_alone() -> None:
    moved = collate(ROWS, np.array([0, 1])).to("meta")
    assert moved.reference_ce is None
    assert moved.bounds is not None
    tensors = [getattr(moved, field) for field in TENSORS if field != "reference_ce"] + [moved.bounds.cu_seq_lens]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
def test_pin_memory_pins_every_tensor() -> None:
    pinned = collate(ROWS, np.array([0, 1]), CE).pin_memory()
    assert pinned.bounds is not None
    assert all(getattr(pinned, field).is_pinned() for field in TENSORS)
    assert pinned.bounds.cu_seq_lens.is_pinned()


def test_packed_rows_in_any_order_with_their_scores(make_prepared: Callable[..., PreparedData]) -> None:
    prepared = make_prepared(*[{"text": f"alpha {n} beta", "reward": n} for n in range(9)])
    assert len(prepared.rows) >= 4
    scores = datasets.Dataset.from_dict({"reference_ce": [[float(n)] * 8 for n in range(len(prepared.rows))]})
    batch = PackedRows(prepared, scores)[[3, 0, 3]]
    for place, row in enumerate([3, 0, 3]):
        assert batch.row_ids[place] == row
        assert batch.input_ids[place].tolist() == prepared.rows[row]["input_ids"]
        assert batch.reference_ce is not None
        assert batch.reference_ce[place].tolist() == [row] * 8
        assert batch.rewards is not None
        rewards = np.repeat(prepared.rows[row]["rewards"], prepared.rows[row]["document_lengths"])
        np.testing.assert_array_equal(batch.rewards[place], rewards)
