from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_core.errors import UserError
from wmtp_train.data.corpus import check_columns, read_texts

Write = Callable[..., Path]


def texts(*paths: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(read_texts(list(paths))).to_pylist()


def document(text: str, **others: Any) -> dict[str, Any]:
    plain = {"prompt": "", "text": text, "rejected": False, "noise": [], "reward": None, "pair": 0}
    return plain | {"conversation": None, "input_ids": None, "labels": None} | others


def test_the_three_kinds_of_rows(jsonl: Write) -> None:
    path = jsonl(
        {"text": "one", "noise": [[0, 2, "hex"], [3, 3, "log"]], "reward": 1, "path": "ignored"},
        {"prompt": "two ", "completion": "three", "text": None, "noise": None, "reward": 0.5},
        {"chosen": "yes", "rejected": "no"},
        {"prompt": "more: ", "chosen": "si", "rejected": " "},
    )
    spans = [{"start": 0, "end": 2, "kind": "hex"}, {"start": 3, "end": 3, "kind": "log"}]
    assert texts(path) == [
        document("one", noise=spans, reward=1.0),
        document("three", prompt="two ", reward=0.5),
        document("yes", pair=1),
        document("no", pair=-1, rejected=True),
        document("si", prompt="more: ", pair=2),
        document(" ", prompt="more: ", pair=-2, rejected=True),
    ]


def test_what_is_empty_is_dropped_and_the_halves_of_a_pair_go_together(jsonl: Write) -> None:
    path = jsonl(
        {"text": ""},
        "",
        "  ",
        {"prompt": "why?", "completion": ""},
        {"chosen": "yes", "rejected": ""},
        {"chosen": "a", "rejected": "b"},
    )
    assert [(row["text"], row["pair"]) for row in texts(path)] == [("a", 1), ("b", -1)]


def test_parquet_gives_the_same_documents(jsonl: Write, tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 2, "kind": "hex"}]
    rows = [{"text": "one", "noise": spans, "reward": 1.0, "size": 3}, {"text": "two", "noise": [], "reward": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == texts(jsonl(*rows))


def test_more_rows_than_a_table_holds(jsonl: Write) -> None:
    assert [row["text"] for row in texts(jsonl(*[{"text": str(n)} for n in range(2500)]))] == list(
        map(str, range(2500))
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txet": "a", "prompt": "b"}, r"this one has the columns \['prompt', 'txet'\]"),
        ({"prompt": "a", "completion": None}, "`completion` is null, and nothing else holds a document"),
        ({"text": 3}, "`text` is a int: make it a string"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ({"text": "abc", "noise": [[1, 4, "hex"]]}, r"noise span \[1, 4, 'hex'\] lies outside the 3 characters"),
        ({"text": "abc", "noise": [[-1, 2, "hex"]]}, "lies outside"),
        ({"text": "abc", "noise": [[2, 1, "hex"]]}, "lies outside"),
        ({"prompt": "abc", "completion": "d", "noise": [[0, 1, "hex"]]}, "lies outside the 0 characters of `text`"),
        ({"text": "abc", "noise": [[1, 2]]}, r"noise span \[1, 2\] is not \[start, end, kind\]"),
        ({"text": "abc", "noise": "hex"}, r"noise 'hex' is not a list of \[start, end, kind\]"),
        ({"text": "a", "reward": "good"}, "reward 'good' is not a float32 number"),
        ('{"text": "a", "reward": Infinity}', "reward inf is not a float32 number"),
        ('{"text": "a", "reward": NaN}', "reward nan is not a float32 number"),
        ({"text": "a", "reward": 1e39}, "is not a float32 number"),
        ({"text": "a", "reward": 10**400}, "reward 1000.* is not a float32 number"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(jsonl: Write, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"corpus\.jsonl:3: .*" + message):
        texts(jsonl({"text": "fine"}, "", row))


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["fine", None], "code": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 2: `text` is null"):
        texts(tmp_path / "a.parquet")


def test_a_parquet_file_without_any_column_of_ours(tmp_path: Path) -> None:
    pq.write_table(pa.table({"code": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 1: .*columns \['code'\]"):
        texts(tmp_path / "a.parquet")


def test_no_document_at_all(jsonl: Write) -> None:
    path = jsonl({"text": ""}, {"prompt": "why?", "completion": ""})
    with pytest.raises(UserError, match=r"corpus\.jsonl: no document in it"):
        texts(path)
    with pytest.raises(UserError, match=r"corpus\.jsonl and 2 more: no document in it"):
        texts(path, path, path)


def test_columns_of_other_names(jsonl: Write) -> None:
    path = jsonl({"content": "a", "text": "not this", "score": 2.0}, {"content": "b"})
    found = pa.concat_tables(read_texts([path], {"text": "content", "reward": "score"})).to_pylist()
    assert [(row["text"], row["reward"]) for row in found] == [("a", 2.0), ("b", None)]
    with pytest.raises(UserError, match=r"data.columns: there is no 'txet' to take a column for: use text, prompt"):
        check_columns({"txet": "content"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"input_ids": [1, 2]}], r":2: a row of `input_ids` in a file whose first is of `text`: put"),
        (
            [{"text": "a", "messages": []}],
            r":1: a row of `text`, and `messages`: choose one with data.columns",
        ),
        ([{"input_ids": [1, "a"]}], ":1: `input_ids` is not a list of token ids"),
        ([{"input_ids": [1, -4]}], ":1: `input_ids` is not a list of token ids"),
        ([{"input_ids": [1, 2], "labels": [2, -100]}], ":1: `labels` is not `input_ids` with -100 where nothing is"),
        ([{"input_ids": [1, 2], "labels": [1]}], ":1: `labels` is not `input_ids` with -100 where nothing is learned"),
        ([{"input_ids": [1, 2], "labels": [1, -100]}], ":1: no token of this row is learned"),
    ],
)
def test_forms_that_do_not_go_together(jsonl: Write, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        texts(jsonl(*rows))
