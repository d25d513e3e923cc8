"""A folder appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmtp_core.errors import UserError
from wmtp_train.atomic_io import commit_dir, partial_of, sync


@contextmanager
def staged_folder(output: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `output`, which takes its place when the block ends without an error.

    Raises:
        UserError: `output` is something else than a folder which an earlier run made (one that holds the file
            `marker`) or an empty one, or cannot be written.
    """
    output = output.resolve()
    if output.exists() and not (output.is_dir() and ((output / marker).is_file() or not any(output.iterdir()))):
        raise UserError(f"--output {output}: exists and holds no {marker}; name a new folder, or delete it")
    partial = partial_of(output)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another folder") from error
    try:
        yield partial
        for file in partial.rglob("*"):
            sync(file)
        commit_dir(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
