"""Reports finished runs in one HTML file that opens offline, and in a picture for a README.

    python -m wmtp_lab.report RUN_DIR [RUN_DIR ...] --output report.html [--picture overview.png]

A `RUN_DIR` is the `output_dir` of a finished run of launch/train.py. The page says each run's outcome in a sentence,
puts metrics and curves side by side, and shows a passage of held-out text shaded by what the later heads keep. The
picture is of the first run with such a passage.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from wmtp_core.errors import UserError
from wmtp_lab.report.overview import picture
from wmtp_lab.report.page import render
from wmtp_lab.report.runs import read_runs
from wmtp_train.atomic_io import atomic_file


def report(folders: Sequence[Path], output: Path, picture_file: Path | None) -> None:
    """Write the page, and the picture if there is a file for it; both or neither.

    Raises:
        UserError: a folder is no finished run, or a file cannot be written.
    """
    if picture_file and picture_file.resolve() == output.resolve():
        raise UserError(f"--picture {picture_file}: is the page itself; name another file")
    runs = read_runs(folders)
    files = {output: render(runs).encode()}
    if picture_file:
        files[picture_file] = picture(runs)
    _write(files)


def _write(files: dict[Path, bytes]) -> None:
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: is a folder; name a file")
    try:
        with ExitStack() as whole:
            for file, content in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                whole.enter_context(atomic_file(file)).write_bytes(content)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); name another file") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Report finished runs in one HTML file.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="output_dir of a finished run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="HTML file to write")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw an overview of the first run as PNG")
    options = parser.parse_args(arguments)
    try:
        report(options.runs, options.output, options.picture)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {options.output}" + (f"; picture: {options.picture}" if options.picture else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
