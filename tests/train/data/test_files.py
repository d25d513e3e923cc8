import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_core.errors import UserError
from wmtp_train.data.files import describe, expand, read_rows


def rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return list(read_rows(path, ["text", "reward"]))


def test_expand_keeps_the_order_given_and_sorts_globs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "z.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = expand([tmp_path / "z.jsonl", f"{tmp_path}/**/*.txt"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "z.jsonl",
        "a.txt",
        "b.txt",
        os.path.join("sub", "c.txt"),
    ]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert expand([tmp_path / "a[1].txt"]) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl: there is no such file"),
        ("*.parquet", r"\*\.parquet: the glob matches no file"),
        ("", "there is no such file"),  # the folder itself
        ("page.html", r"page\.html: unknown file extension '\.html': use \.jsonl, \.parquet, \.txt"),
    ],
)
def test_expand_refuses(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "page.html").write_text("x")
    with pytest.raises(UserError, match=message):
        expand([tmp_path / name])


def test_expand_refuses_no_files() -> None:
    with pytest.raises(UserError, match="no file is given"):
        expand([])


def test_describe_stays_short() -> None:
    assert describe([Path("a")]) == "a"
    assert describe([Path("a"), Path("b"), Path("c")]) == "a and 2 more"


def test_rows_of_jsonl_know_their_lines(jsonl: Callable[..., Path]) -> None:
    path = jsonl({"text": "a", "other": 1}, "", " \t", {"text": "b"})
    assert rows(path) == [(f"{path}:1", {"text": "a", "other": 1}), (f"{path}:4", {"text": "b"})]


def test_rows_of_parquet_know_their_numbers_and_all_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": list("abc") * 500, "size": [1] * 1500}), path)
    found = rows(path)
    assert found[1400] == (f"{path}: row 1401", {"text": "c", "size": None})
    assert len(found) == 1500


def test_a_text_file_is_one_row_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ünï\r\nline\n".encode())
    assert rows(tmp_path / "a.txt") == [(str(tmp_path / "a.txt"), {"text": "ünï\r\nline\n"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"broken JSON \(Expecting value, column 9\)"),
        ('["text"]', "a row is a JSON object, this is a list"),
    ],
)
def test_a_broken_line_is_named(jsonl: Callable[..., Path], line: str, message: str) -> None:
    with pytest.raises(UserError, match=r"corpus\.jsonl:3: " + message):
        rows(jsonl({"text": "fine"}, "", line))


def test_bad_bytes_are_named(tmp_path: Path) -> None:
    for name, message in [("a.txt", r"a\.txt: not UTF-8 .*byte 1"), ("a.jsonl", r"a\.jsonl:1: not UTF-8 .*byte 1")]:
        (tmp_path / name).write_bytes(b"a\xff")
        with pytest.raises(UserError, match=message):
            rows(tmp_path / name)
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file"):
        rows(tmp_path / "a.parquet")
