"""The command line that the benchmark and the profile share."""

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from wmtp_core import UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What both are asked for."""

    output: Path
    device: torch.device
    dtype: torch.dtype
    quick: bool
    command: str
    """The command line, to be pasted."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, `--device`, `--dtype` and `--quick`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all of it runs")


def check_options(parsed: argparse.Namespace, script: str, arguments: list[str]) -> Options:
    """Return the options, after the output folder was made: nothing is measured in vain.

    Raises:
        UserError: no such device, or a folder that cannot be written.
    """
    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    try:
        parsed.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {parsed.output}: cannot be made ({error.strerror}); name another folder") from error
    if not os.access(parsed.output, os.W_OK):
        raise UserError(f"--output {parsed.output}: cannot be written to; name another folder")
    return Options(
        output=parsed.output,
        device=torch.device(parsed.device),
        dtype=_DTYPES[parsed.dtype],
        quick=parsed.quick,
        command=shlex.join(["python", f"tools/{script}", *arguments]),
    )
