"""Corpus files → rows: dicts as they stand in the file, each with the place to name when something is wrong with it.

The files are read here and not by `datasets.load_dataset`: its JSON builder names no line when one is broken, and
Arrow has no type for the `[start, end, kind]` of a noise span.
"""

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wmtp_core.errors import UserError

SUFFIXES = (".jsonl", ".parquet", ".txt")


def expand(files: Iterable[str | Path]) -> list[Path]:
    """Return the corpus files behind paths and globs (`**` included), in the order given, those of a glob by name.

    Raises:
        UserError: no file at all, a missing file, a glob without a match, an unknown file extension.
    """
    paths: list[Path] = []
    for file in map(str, files):
        found = [Path(file)] if Path(file).is_file() else sorted(map(Path, glob.glob(file, recursive=True)))
        found = [path for path in found if path.is_file()]
        if not found:
            problem = "the glob matches no file" if glob.has_magic(file) else "there is no such file"
            raise UserError(f"corpus {file}: {problem}: give paths or globs of {', '.join(SUFFIXES)} files")
        paths += found
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise UserError(f"corpus {path}: unknown file extension {path.suffix!r}: use {', '.join(SUFFIXES)}")
    if not paths:
        raise UserError("corpus: no file is given: name at least one")
    return paths


def describe(paths: list[Path]) -> str:
    """Return the files in a few words, for messages."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return (where, row) for each row of a file; of a parquet file the values of other columns are not read and None.

    Raises:
        UserError: something cannot be read; the message names file and line.
    """
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    return _read_parquet(path, columns) if path.suffix == ".parquet" else _read_text(path)


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.rstrip().decode())
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: broken JSON ({error.msg}, column {error.colno}): fix this line") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason}, byte {error.start}): fix this line") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: a row is a JSON object, this is a {type(row).__name__}: fix this line")
            yield where, row


def _read_parquet(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file ({error}): write it again") from error
    names = file.schema_arrow.names
    number = 0
    for batch in file.iter_batches(batch_size=1000, columns=[name for name in names if name in columns]):
        for values in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", dict.fromkeys(names) | values


def _read_text(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield str(path), {"text": path.read_bytes().decode()}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}, byte {error.start}): convert the file") from error
