"""Uses the minutes that a GPU is at hand: checks, benchmarks and training steps, in one command.

    python tools/gpu_check.py --output runs/gpu_check [--minutes 8]

Needs a checkout and the third-party packages that packages/*/pyproject.toml name, and pytest; the project's own need
not be installed. Every part (environment, tests, loss, step, training, decoding) is a process with a time of its own;
what it finds is written at once, as JSON, and after each part the whole of it as report.json and as report.md, which
goes into docs/gpu.md as it is. `--device cpu --quick` runs the same code in tiny shapes on a CPU.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_checking.parts import PARTS, Task, run_part
from gpu_checking.record import DONE, write_whole
from gpu_checking.report import Report
from gpu_checking.runner import run_parts


def check(output: Path, task: Task, minutes: float, command: str) -> bool:
    """Run all parts and write the report after each; returns whether all of them were done."""
    for records in run_parts(output, task, 60 * minutes):
        report = Report(task.device, command, records)
        write_whole(output / "report.md", report.markdown())
        everything = {record.path.stem: {k: v for k, v in vars(record).items() if k != "path"} for record in records}
        write_whole(output / "report.json", json.dumps({"command": command, "parts": everything}, indent=1) + "\n")
        last = records[-1]
        print(f"{last.path.stem}: {last.status} in {last.seconds:.0f} s {last.reason}".rstrip(), flush=True)
    return all(record.status == DONE for record in records)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 where a part was not done."""
    parser = argparse.ArgumentParser(description="Check, benchmark and train on a GPU, in a few minutes.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--minutes", type=float, default=8, help="for everything together; default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all of it runs")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help="run one part in this process")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    if parsed.device == "cpu" and not parsed.quick:
        print("error: --device cpu: full shapes take hours there; add --quick", file=sys.stderr)
        return 2
    try:
        parsed.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: --output {parsed.output}: {error.strerror}; name another folder", file=sys.stderr)
        return 2
    task = Task(parsed.device, parsed.quick)
    if parsed.part is not None:
        return run_part(parsed.part, parsed.output.resolve() / f"{parsed.part}.json", task)
    command = shlex.join(["python", "tools/gpu_check.py", *given])
    done = check(parsed.output.resolve(), task, parsed.minutes, command)
    print(f"{parsed.output}: report.md, report.json")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
