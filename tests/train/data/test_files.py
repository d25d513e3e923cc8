import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_core.errors import UserError
from wmtp_train.data.files import content_fingerprint, describe, expand, read_rows


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
        ("sub", "no .jsonl, .json, .parquet, .txt, .bin file in this folder"),
        ("splits", "a data set of several splits: name one of them, test, train"),
        (
            "page.html",
            r"page\.html: unknown file extension '\.html': use \.jsonl, \.json, \.parquet, \.txt, \.bin",
        ),
    ],
)
def test_expand_refuses(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "page.html").write_text("x")
    (tmp_path / "sub").mkdir()
    splits = {name: datasets.Dataset.from_dict({"text": ["a"]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
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


def test_a_folder_is_what_is_in_it(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.jsonl.gz", "README.md", "sub/c.idx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert expand([tmp_path]) == [tmp_path / "b.txt", tmp_path / "sub/a.jsonl.gz"]


@pytest.mark.parametrize(("suffix", "compression"), [("", None), (".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()])
def test_compressed_or_not_with_or_without_a_byte_order_mark(
    tmp_path: Path, suffix: str, compression: str | None, mark: bytes
) -> None:
    contents = {
        "a.jsonl": b'{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        "b.json": b'[{"text": "a"}, {"text": "b"}]',
        "c.txt": b"a\r\nb",
    }
    for name, content in contents.items():
        with pa.output_stream(str(tmp_path / (name + suffix)), compression=compression) as file:
            file.write(mark + content)
    paths = expand([tmp_path])
    assert [path.name for path in paths] == [name + suffix for name in contents]
    lines, items, text = (rows(path) for path in paths)
    assert lines == [(f"{paths[0]}:1", {"text": "a"}), (f"{paths[0]}:3", {"text": "b"})]
    assert items == [(f"{paths[1]}: row 1", {"text": "a"}), (f"{paths[1]}: row 2", {"text": "b"})]
    assert text == [(str(paths[2]), {"text": "a\r\nb"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"text": "a"}', "a .json file holds a list of rows, this is a dict: use .jsonl"),
        ("a.json", b"[3]", "a.json: row 1: a row is a JSON object, this is a int"),
        ("a.json", b"[", "a.json: broken JSON"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: it cannot be read"),
        ("a.txt.zst", b"plain", "a.txt.zst: it cannot be read"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name)


def test_a_saved_data_set_is_one_source(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"], "size": [1, 2]}).save_to_disk(saved)
    assert expand([saved]) == [saved]
    assert rows(saved) == [(f"{saved}: row {n}", {"text": t, "size": None}) for n, t in ((1, "a"), (2, "b"))]
    before = content_fingerprint(saved)
    datasets.Dataset.from_dict({"text": ["a", "c"], "size": [1, 2]}).save_to_disk(saved)
    assert content_fingerprint(saved) != before
    (saved / "state.json").write_text("{}")
    with pytest.raises(UserError, match="saved: not a data set of save_to_disk"):
        rows(saved)
