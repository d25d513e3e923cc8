"""Arrow files that are there whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import datasets
import pyarrow as pa

from wmtp_core.errors import UserError


def write_arrow(path: Path, tables: Iterable[pa.Table]) -> None:
    """Stream tables (one or more, of one schema) into a file for `datasets.Dataset.from_file`; on disk on return."""
    remaining: Iterator[pa.Table] = iter(tables)
    first = next(remaining)
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, first.schema) as stream:
            for table in chain([first], remaining):
                stream.write_table(table)
        os.fsync(file.fileno())


def open_arrow(path: Path, num_rows: int, fix: str) -> datasets.Dataset:
    """Return the rows of a file that `write_arrow` wrote, memory-mapped.

    Raises:
        UserError: the file is missing, cut off, or has another number of rows than was written.
    """
    try:
        rows = datasets.Dataset.from_file(str(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: missing or damaged ({str(error).splitlines()[0]}): {fix}") from error
    if len(rows) != num_rows:  # Arrow takes a stream that ends between two blocks for a whole one
        raise UserError(f"{path}: damaged, it has {len(rows)} of its {num_rows} rows: {fix}")
    return rows
