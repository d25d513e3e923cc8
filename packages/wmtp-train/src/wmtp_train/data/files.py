"""Corpus files → rows: dicts as they stand in the file, each with the place to name when something is wrong with it.

The files are read here and not by `datasets.load_dataset`: its JSON builder names no line when one is broken, and
Arrow has no type for the `[start, end, kind]` of a noise span.
"""

import glob
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from wmtp_core.errors import UserError
from wmtp_train.data.megatron import read_megatron

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".bin")
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_SAVED = "state.json"  # what `Dataset.save_to_disk` leaves in a folder of one split
_SAVED_SPLITS = "dataset_dict.json"
Row = tuple[str, dict[str, Any]]


def expand(files: Iterable[str | Path]) -> list[Path]:
    """Return the corpus files behind paths, folders and globs (`**` included), those of a folder or glob by name.

    A folder stands for all files of known kinds in it and below, or for the one data set that `save_to_disk` left.

    Raises:
        UserError: no file at all, a missing file, a glob without a match, an unknown file extension.
    """
    paths: list[Path] = []
    for file in map(str, files):
        found = [Path(file)] if file and Path(file).exists() else sorted(map(Path, glob.glob(file, recursive=True)))
        if not found:
            problem = "the glob matches no file" if glob.has_magic(file) else "there is no such file"
            raise UserError(f"corpus {file}: {problem}: give folders, paths or globs of {', '.join(SUFFIXES)} files")
        paths += [inner for path in found for inner in (_inside(path) if path == Path(file) else [path])]
    paths = [path for path in paths if path.is_file() or _is_saved(path)]
    for path in paths:
        if path.is_file() and _kind(path) not in SUFFIXES:
            raise UserError(
                f"corpus {path}: unknown file extension {path.suffix!r}: use {', '.join(SUFFIXES)}, or one of them "
                f"and {' or '.join(_COMPRESSION)}"
            )
    if not paths:
        raise UserError("corpus: no file is given: name at least one")
    return paths


def _inside(path: Path) -> list[Path]:
    """Return the path itself, or what is in it if it is a folder."""
    if path.is_file() or _is_saved(path):
        return [path]
    if (path / _SAVED_SPLITS).is_file():
        splits = sorted(part.parent.name for part in path.glob(f"*/{_SAVED}"))
        raise UserError(f"corpus {path}: a data set of several splits: name one of them, {', '.join(splits)}")
    found = sorted(inner for inner in path.rglob("*") if inner.is_file() and _kind(inner) in SUFFIXES)
    if not found:
        raise UserError(f"corpus {path}: no {', '.join(SUFFIXES)} file in this folder: name another")
    return found


def _is_saved(path: Path) -> bool:
    return (path / _SAVED).is_file()


def _kind(path: Path) -> str:
    """Return the extension that says what a file holds, whatever it is compressed with."""
    compressible = path.suffix in _COMPRESSION and path.with_suffix("").suffix in (".jsonl", ".json", ".txt")
    return path.with_suffix("").suffix if compressible else path.suffix


def describe(paths: list[Path]) -> str:
    """Return the files in a few words, for messages."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def content_fingerprint(path: Path) -> bytes:
    """Return what tells the content of a corpus file, or of a saved data set, from any other."""
    parts = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
    if path.suffix == ".bin":
        parts.append(path.with_suffix(".idx"))
    digests = []
    for part in parts:
        try:
            with part.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError as error:
            raise UserError(f"corpus {path}: {part.name} is missing beside it: put it there") from error
    return path.suffix.encode() + b"".join(digests)


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    """Yield (where, row) for each row of a file; of a parquet file the values of other columns are not read and None.

    Raises:
        UserError: something cannot be read; the message names file and line.
    """
    try:
        if path.is_dir():
            yield from _read_saved(path, columns)
        elif path.suffix == ".parquet":
            yield from _read_parquet(path, columns)
        elif path.suffix == ".bin":
            yield from read_megatron(path)
        else:
            yield from {".jsonl": _read_jsonl, ".json": _read_json, ".txt": _read_text}[_kind(path)](path)
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({' '.join(str(error).split())}): write it again") from error


def _open(path: Path) -> io.BufferedReader:
    """Open a file for reading, decompressed, and without the byte-order mark that some editors put first."""
    file = io.BufferedReader(pa.input_stream(str(path), compression=_COMPRESSION.get(path.suffix)))
    if file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
    return file


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.isspace():
                where = f"{path}:{number}"
                yield where, _require_object(where, _parse(where, line.rstrip(), "this line"), "this line")


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        rows = _parse(str(path), file.read(), "the file")
    if not isinstance(rows, list):
        raise UserError(f"{path}: a .json file holds a list of rows, this is a {type(rows).__name__}: use .jsonl")
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        yield where, _require_object(where, row, "it")


def _parse(where: str, text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode())
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg}, column {error.colno}): fix {what}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}, byte {error.start}): fix {what}") from error


def _require_object(where: str, row: Any, what: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, this is a {type(row).__name__}: fix {what}")
    return row


def _read_parquet(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file ({error}): write it again") from error
    names = file.schema_arrow.names
    yield from _number(path, names, file.iter_batches(1000, columns=[name for name in names if name in columns]))


def _read_saved(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    try:
        rows = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a data set of save_to_disk ({error}): write it again") from error
    names = rows.column_names
    wanted = rows.select_columns([name for name in names if name in columns]).with_format("arrow")
    yield from _number(path, names, wanted.iter(1000))


def _number(path: Path, names: list[str], tables: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    number = 0
    for table in tables:
        for values in table.to_pylist():
            number += 1
            yield f"{path}: row {number}", dict.fromkeys(names) | values


def _read_text(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as file:
            yield str(path), {"text": file.read().decode()}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}, byte {error.start}): convert the file") from error
