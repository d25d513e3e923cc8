"""Arrow files and folders that are there whole or not at all."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa


def write_arrow(path: Path, tables: Iterable[pa.Table]) -> None:
    """Streams tables (one or more, of one schema) into a file for `datasets.Dataset.from_file`; on disk on return."""
    remaining: Iterator[pa.Table] = iter(tables)
    first = next(remaining)
    with path.open("wb") as file:
        with pa.ipc.new_stream(file, first.schema) as stream:
            for table in chain([first], remaining):
                stream.write_table(table)
        os.fsync(file.fileno())


def publish(aside: Path, folder: Path) -> None:
    """Gives a finished folder its name by a rename. Where another process was first, the folder of that one stays."""
    try:
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
