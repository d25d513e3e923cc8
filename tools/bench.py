"""Times the loss op and the whole training step against the forms that they replace.

    python tools/bench.py --output runs/bench [--quick] [--device cuda] [--dtype bfloat16] [--only loss|step|selection]

Everything is compared with an exact computation first. Then the variants take turns, round by round, so that ratios of
one round do not depend on what else the machine does. Prints Markdown tables; writes every single measurement to
bench.json and a picture to bench.png. Sizes depend on the device; the naive forms need about 10 GB of memory on a CPU,
and on a GPU those that do not fit are left out. `--only selection` measures the top k over several processes instead.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from benchmarks.comparison import Comparison
from benchmarks.loss_benchmark import loss_comparisons
from benchmarks.options import Options, add_options, check_options
from benchmarks.plots import draw_comparisons
from benchmarks.selection_benchmark import selection_table, selection_times
from benchmarks.step_benchmark import step_comparisons
from benchmarks.tables import LEGEND, to_markdown
from wmtp_core import UserError
from wmtp_lab.measure.machine import describe_machine, describe_versions
from wmtp_lab.measure.memory import why_not_measured

_ROUNDS, _QUICK_ROUNDS = 5, 2


def bench(options: Options, only: str | None) -> None:
    """Measure, prints and writes.

    Args:
        only: "loss" or "step"; None: both.

    Raises:
        UserError: memory ran out.
        WrongResult: something computes something else than it should.
    """
    machine, versions = describe_machine(options.device), describe_versions()
    print(f"{options.command}\n{machine}\n{versions}\n\n{LEGEND}\n", flush=True)
    skipped: dict[str, str] = {}
    if reason := why_not_measured(options.device):
        skipped["peak memory"] = reason
    comparisons = []
    for comparison in _comparisons(options, only, skipped):
        print(to_markdown(comparison), flush=True)
        comparisons.append(comparison)
    for name, reason in skipped.items():
        print(f"left out: {name}: {reason}")
    record = {
        "command": options.command,
        "dtype": str(options.dtype).removeprefix("torch."),
        "machine": machine,
        "versions": versions,
        "skipped": skipped,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    (options.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    hardware = f"{machine.get('gpu', machine['processor'])}, threads: {machine['threads']}"
    caption = f"{hardware}, {record['dtype']}, torch {versions['torch']}: {options.command}"
    (options.output / "bench.png").write_bytes(draw_comparisons(comparisons, caption))


def _comparisons(options: Options, only: str | None, skipped: dict[str, str]) -> Iterator[Comparison]:
    rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    if only != "step":
        yield from loss_comparisons(options.device, options.dtype, rounds, options.quick, skipped)
    if only != "loss":
        yield from step_comparisons(options.device, options.dtype, rounds, options.quick, skipped)


def bench_selection(options: Options) -> None:
    """Measure the top k over processes of this machine, prints and writes bench.json.

    Raises:
        WrongResult: counting keeps other scores than sorting.
    """
    machine, versions = describe_machine(options.device), describe_versions()
    print(f"{options.command}\n{machine}\n{versions}\n", flush=True)
    times = list(selection_times(options.quick))
    print(selection_table(times))
    record = {
        "command": options.command,
        "machine": machine,
        "versions": versions,
        "selection": list(map(asdict, times)),
    }
    (options.output / "bench.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time the loss op and the training step.")
    add_options(parser)
    parser.add_argument("--only", choices=["loss", "step", "selection"], help="default: loss and step")
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    try:
        options = check_options(parsed, "bench.py", given)
        if parsed.only == "selection":
            bench_selection(options)
        else:
            bench(options, parsed.only)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{parsed.output}: bench.json" + ("" if parsed.only == "selection" else ", bench.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
