"""The folder that figures are written to."""

import os
from pathlib import Path

from wmtp_core import UserError


def prepare_folder(output: Path) -> None:
    """Make the folder, before anything is measured in vain.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be made ({error.strerror}); name another folder") from error
    if not os.access(output, os.W_OK):
        raise UserError(f"--output {output}: cannot be written to; name another folder")
