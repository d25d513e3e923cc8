"""Times the loss op and the whole training step against the forms that they replace.

    python tools/bench.py --output runs/bench [--quick] [--device cuda] [--dtype bfloat16] [--only loss]

Everything is compared with an exact computation first. Then the variants take turns, round by round, so that ratios of
one round do not depend on what else the machine does. Prints Markdown tables; writes every single measurement to
bench.json and a picture to bench.png. Sizes depend on the device; peak memory on CPU needs about 10 GB free.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.comparison import Comparison
from benchmarks.figure import draw_comparisons
from benchmarks.loss_benchmark import loss_comparisons
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.markdown import LEGEND, to_markdown
from benchmarks.memory import why_not_measured
from benchmarks.output import prepare_folder
from benchmarks.step_benchmark import step_comparisons
from wmtp_core import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS, QUICK_ROUNDS = 5, 2


def bench(output: Path, device: torch.device, dtype: torch.dtype, quick: bool, only: str | None, command: str) -> None:
    """Measures, prints and writes.

    Raises:
        UserError: the device is not there, the folder cannot be written, or memory ran out.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    prepare_folder(output)
    machine, versions = describe_machine(device), describe_versions()
    print(f"{command}\n{machine}\n{versions}\n\n{LEGEND}\n", flush=True)
    skipped: dict[str, str] = {}
    if reason := why_not_measured(device):
        skipped["peak memory"] = reason
    comparisons = []
    for comparison in _comparisons(device, dtype, quick, only, skipped):
        print(to_markdown(comparison), flush=True)
        comparisons.append(comparison)
    for name, reason in skipped.items():
        print(f"left out: {name}: {reason}")
    record = {
        "command": command,
        "dtype": str(dtype).removeprefix("torch."),
        "machine": machine,
        "versions": versions,
        "skipped": skipped,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (output / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    hardware = f"{machine.get('gpu', machine['processor'])}, {machine['threads']} threads"
    caption = f"{hardware}, {record['dtype']}, torch {versions['torch']}: {command}"
    (output / "bench.png").write_bytes(draw_comparisons(comparisons, caption))


def _comparisons(
    device: torch.device, dtype: torch.dtype, quick: bool, only: str | None, skipped: dict[str, str]
) -> Iterator[Comparison]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    if only != "step":
        yield from loss_comparisons(device, dtype, rounds, quick, skipped)
    if only != "loss":
        yield from step_comparisons(device, dtype, rounds, quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time the loss op and the training step.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for bench.json and bench.png")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all of it runs")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--only", choices=["loss", "step"], help="default: both")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "tools/bench.py", *arguments])
    device = torch.device(options.device)
    try:
        bench(options.output, device, DTYPES[options.dtype], options.quick, options.only, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: bench.json, bench.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
