"""Shows where a training step's time goes: data, reference, trunk, heads, loss, selection, optimizer.

    python tools/profile_step.py --output runs/profile [--quick] [--device cuda] [--dtype bfloat16]

Prints a Markdown table of mean seconds; writes profile.json and profile.png. One process, without DeepSpeed: what is
timed is the step that trains. To see every kernel instead, run it under torch.profiler.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.options import Options, add_options, check_options
from benchmarks.parts import PARTS, measure_parts
from benchmarks.plots import draw_parts
from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS
from wmtp_core import UserError
from wmtp_lab.measure.machine import describe_machine, describe_versions
from wmtp_lab.tables import markdown_table

_ON_CPU = StepShape(8192, batch=4, length=256, hidden_size=256, layers=8)
_ON_CUDA = StepShape(32768, batch=4, length=1024, hidden_size=1024, layers=12)
_QUICK = StepShape(512, batch=2, length=16, hidden_size=32, layers=2)


def profile(options: Options) -> None:
    """Measure, prints and writes."""
    shape = _QUICK if options.quick else _ON_CUDA if options.device.type == "cuda" else _ON_CPU
    steps = 2 if options.quick else 8
    machine, versions = describe_machine(options.device), describe_versions()
    seconds = {
        name: measure_parts(variant, shape, options.device, options.dtype, steps)
        for name, variant in STEP_VARIANTS.items()
    }
    print(f"{options.command}\n{machine}\n{shape}\n")
    rows = [[part, *(f"{parts[part]:.4f}" for parts in seconds.values())] for part in PARTS]
    rows.append(["**step**", *(f"**{sum(parts.values()):.4f}**" for parts in seconds.values())])
    print(markdown_table(["seconds", *seconds], rows))
    record = {"command": options.command, "machine": machine, "versions": versions, "seconds": seconds}
    (options.output / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    caption = (
        f"V = {shape.vocab_size}, {shape.batch} × {shape.length} tokens, {shape.horizon} heads on {shape.layers} "
        f"layers, D = {shape.hidden_size}; {machine.get('gpu', machine['processor'])}, threads: {machine['threads']}"
    )
    (options.output / "profile.png").write_bytes(draw_parts(seconds, PARTS, caption))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Show where a training step's time goes.")
    add_options(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    try:
        profile(check_options(parsed, "profile_step.py", given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{parsed.output}: profile.json, profile.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
