"""A folder appears whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmtp_core.errors import UserError


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
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        parent = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another folder") from error
    with parent as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
