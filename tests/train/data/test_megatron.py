import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmtp_core.errors import UserError
from wmtp_train.data.files import content_fingerprint, expand, read_rows

CODES = {"uint8": 1, "int32": 4, "int64": 5, "uint16": 8}


def write(folder: Path, documents: list[list[list[int]]], dtype: str = "uint16") -> Path:
    """Write documents of sequences of tokens, as the format is published."""
    sequences = [np.array(sequence, dtype) for document in documents for sequence in document]
    (folder / "a.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    sizes = [len(sequence) for sequence in sequences]
    starts = np.cumsum([0, *sizes])[:-1] * np.dtype(dtype).itemsize
    ends = np.cumsum([0, *map(len, documents)])
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], len(sizes), len(ends))
    arrays = np.array(sizes, "<i4").tobytes() + starts.astype("<i8").tobytes() + ends.astype("<i8").tobytes()
    (folder / "a.idx").write_bytes(header + arrays)
    return folder / "a.bin"


@pytest.mark.parametrize("dtype", CODES)
def test_documents_are_their_sequences_end_to_end(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, [[[1, 2], [3]], [[200]], [[5, 6, 7, 8]]], dtype)
    assert expand([tmp_path]) == [path]
    found = list(read_rows(path, []))
    assert [row["input_ids"] for _, row in found] == [[1, 2, 3], [200], [5, 6, 7, 8]]
    assert [where for where, _ in found] == [f"{path}: document {n}" for n in (1, 2, 3)]


def test_tokens_and_index_are_one_corpus(tmp_path: Path) -> None:
    path = write(tmp_path, [[[1, 2]], [[3]]])
    before = content_fingerprint(path)
    write(tmp_path, [[[1]], [[2, 3]]])
    assert content_fingerprint(path) != before


def damage(path: Path, how: str) -> None:
    index = path.with_suffix(".idx")
    content = index.read_bytes()
    match how:
        case "missing":
            index.unlink()
        case "foreign":
            index.write_bytes(b"x" * len(content))
        case "cut off":
            index.write_bytes(content[:-3])
        case "of an unknown type":
            index.write_bytes(content[:17] + b"\x63" + content[18:])
        case "of other tokens":
            path.write_bytes(path.read_bytes() + b"12")
        case "of sequences that are not there":
            index.write_bytes(content[:-8] + struct.pack("<q", 9))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "a.bin: a.idx is missing beside it"),
        ("foreign", "a.idx: not an index of Megatron-LM: write a.bin and a.idx again"),
        ("cut off", "a.idx: cut off or damaged"),
        ("of an unknown type", "a.idx: tokens of the unknown type 99"),
        ("of other tokens", "a.idx: it does not fit a.bin, which has 8 bytes"),
        ("of sequences that are not there", "a.idx: cut off or damaged"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, how: str, message: str) -> None:
    path = write(tmp_path, [[[1, 2]], [[3]]])
    damage(path, how)
    with pytest.raises(UserError, match=message):
        list(read_rows(path, []))


def test_a_missing_index_is_found_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, [[[1, 2]]])
    damage(path, "missing")
    fingerprint: Any = content_fingerprint
    with pytest.raises(UserError, match=r"a\.bin: a\.idx is missing beside it"):
        fingerprint(path)
