from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmtp_core.errors import UserError
from wmtp_train.data.packed.packing import pack, packing_fingerprint, unpack

EOS = 99


def corpus(*documents: dict[str, Any]) -> datasets.Dataset:
    plain = {"masked": 0, "reward": None, "pair": 0}
    kinds = {"masked": pa.int32(), "reward": pa.float32(), "pair": pa.int32(), "input_ids": pa.list_(pa.int32())}
    if any("noise" in document for document in documents):
        kinds["noise"] = pa.list_(pa.int8())
    return datasets.Dataset(pa.Table.from_pylist([plain | document for document in documents], pa.schema(kinds)))


def packed(documents: datasets.Dataset, sequence_length: int, seed: int = 0, **options: Any) -> datasets.Dataset:
    return datasets.Dataset(pa.concat_tables(pack(documents, sequence_length, seed, EOS, **options)))


@st.composite
def corpora(draw: st.DrawFn) -> datasets.Dataset:
    documents: list[dict[str, Any]] = []

    def one(pair: int) -> None:
        ids = [*draw(st.lists(st.integers(0, 50), max_size=9)), EOS]
        noise = draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
        masked = len(ids) if pair < 0 else draw(st.integers(0, len(ids) - 1))
        reward = draw(st.none() | st.integers(0, 9))
        documents.append({"input_ids": ids, "noise": noise, "masked": masked, "reward": reward, "pair": pair})

    for number in range(1, draw(st.integers(1, 8)) + 1):
        for pair in draw(st.sampled_from([(0,), (number, -number)])):
            one(pair)
    return corpus(*documents)


@given(corpora(), st.integers(2, 12), st.integers(0, 5), st.integers(1, 4))
def test_unpack_gives_back_what_was_packed(
    documents: datasets.Dataset, sequence_length: int, seed: int, block_rows: int
) -> None:
    rows = packed(documents, sequence_length, seed, block_rows=block_rows)
    back = unpack(rows)
    for index, document in enumerate(documents):
        ids, masked = document["input_ids"], document["masked"]
        assert back["input_ids"][index].tolist() == ids
        assert back["labels"][index].tolist() == [-100] * masked + ids[masked:]
        assert back["noise"][index].tolist() == document["noise"]
    assert len(back["input_ids"]) == len(documents)


@given(corpora(), st.integers(2, 12), st.integers(0, 5), st.integers(1, 4))
def test_rows_are_the_shuffled_documents_cut_into_equal_rows(
    documents: datasets.Dataset, sequence_length: int, seed: int, block_rows: int
) -> None:
    rows = list(packed(documents, sequence_length, seed, block_rows=block_rows))
    pieces = [piece for row in rows for piece in zip(row["document_ids"], row["document_lengths"], strict=True)]
    order = list(dict.fromkeys(document for document, _ in pieces if document >= 0))
    assert sorted(order) == list(range(len(documents)))

    stream = [
        (token, masked <= place, document["reward"], document["pair"], number)
        for number in order
        for document in [documents[number]]
        for masked in [document["masked"]]
        for place, token in enumerate(document["input_ids"])
    ]
    padding = -len(stream) % sequence_length
    stream += [(EOS, False, None, 0, -1)] * padding
    assert len(rows) * sequence_length == len(stream)
    for start, row in zip(range(0, len(stream), sequence_length), rows, strict=True):
        here = stream[start : start + sequence_length]
        assert row["input_ids"] == [token for token, *_ in here]
        assert row["labels"] == [token if target else -100 for token, target, *_ in here]
        assert min(row["document_lengths"]) > 0
        assert np.repeat(row["document_ids"], row["document_lengths"]).tolist() == [number for *_, number in here]
        rewards, pairs = [token[2] for token in here], [token[3] for token in here]
        assert ("rewards" in row) == any(document["reward"] is not None for document in documents)
        assert ("pairs" in row) == any(document["pair"] for document in documents)
        if "rewards" in row:
            values = np.repeat(row["rewards"], row["document_lengths"])
            assert [None if np.isnan(value) else value for value in values] == rewards
        if "pairs" in row:
            assert np.repeat(row["pairs"], row["document_lengths"]).tolist() == pairs


@given(corpora(), st.integers(2, 12), st.integers(0, 5), st.integers(1, 4))
def test_without_packing_each_row_is_one_document(
    documents: datasets.Dataset, sequence_length: int, seed: int, block_rows: int
) -> None:
    rows = list(packed(documents, sequence_length, seed, block_rows=block_rows, packing=False))
    order = [row["document_ids"][0] for row in rows]
    assert sorted(order) == list(range(len(documents)))
    assert order == list(packed(documents, 10**4, seed)[0]["document_ids"])[: len(order)], "shuffled as packed ones are"
    for number, row in zip(order, rows, strict=True):
        document = documents[number]
        tokens = document["input_ids"][:sequence_length]
        padding = sequence_length - len(tokens)
        labels = [-100 if place < document["masked"] else token for place, token in enumerate(tokens)]
        assert row["input_ids"] == tokens + [EOS] * padding
        assert row["labels"] == labels + [-100] * padding
        assert row["noise"] == document["noise"][:sequence_length] + [0] * padding
        pieces = [(number, len(tokens)), (-1, padding)]
        kept = [piece for piece in pieces if piece[1]]
        assert list(zip(row["document_ids"], row["document_lengths"], strict=True)) == kept
        if "rewards" in row:
            rewards = [None if np.isnan(value) else value for value in row["rewards"]]
            assert rewards == [document["reward"], None][: len(kept)]


def test_pairs_stay_together_and_move() -> None:
    documents = corpus(
        *[{"input_ids": [n, EOS], "pair": pair} for p in range(20) for n, pair in ((p, 0), (p, p + 1), (p, -p - 1))]
    )
    rows = packed(documents, 4)
    order = [number for row in rows for number in row["document_ids"]]
    assert order != sorted(order)
    for chosen in range(1, 60, 3):
        assert order[order.index(chosen) + 1] == chosen + 1


def test_the_seed_decides_the_order_alone() -> None:
    documents = corpus(*[{"input_ids": [n, EOS]} for n in range(30)])
    first, again, other = (packed(documents, 4, seed)[:]["input_ids"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_optional_columns_are_there_only_with_something_in_them() -> None:
    always = ["input_ids", "labels", "document_lengths", "document_ids"]
    assert packed(corpus({"input_ids": [1, EOS]}), 2).column_names == always
    chosen = {"input_ids": [1, EOS], "noise": [0, 1], "reward": 1.0, "pair": 1}
    full = corpus(chosen, {"input_ids": [EOS], "noise": [0], "pair": -1})
    assert packed(full, 2).column_names == [*always, "noise", "rewards", "pairs"]


def test_columns_are_narrow() -> None:
    document = {"input_ids": [1, EOS], "noise": [0, 1], "reward": 1.0}
    kinds = {name: feature.feature.dtype for name, feature in packed(corpus(document), 2).features.items()}
    assert kinds.pop("noise") == "int8"
    assert kinds.pop("rewards") == "float32"
    assert set(kinds.values()) == {"int32"}


def test_fingerprint_knows_length_and_seed_and_refuses_a_row_without_target() -> None:
    assert len({packing_fingerprint(*both) for both in [(2, 0), (2, 1), (20, 1), (2, 0), (2, 0, False)]}) == 4
    for length in (1, 0, -3):
        with pytest.raises(UserError, match=f"sequence_length {length}: a row shorter than 2 tokens"):
            packing_fingerprint(length, 0)
