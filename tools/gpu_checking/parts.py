"""The parts of a check, the most valuable first, and how one of them runs in its own process."""

import importlib
import traceback
from dataclasses import dataclass
from pathlib import Path

from gpu_checking.record import DONE, FAILED, NOT_RUN, Record


@dataclass(frozen=True)
class Part:
    """One part of a check.

    Attributes:
        name: of its module in this folder, its JSON file and its heading in the report.
        share: of the whole time. What a part leaves over, the next ones get.
        items: what it shows, a line each.
    """

    name: str
    share: float
    items: tuple[str, ...]


PARTS = [
    Part("environment", 0.05, ("device, driver, clocks, memory and versions", "speed of a bf16 matrix product")),
    Part(
        "tests",
        0.27,
        (
            "losses and gradients of `linear_cross_entropy` against float64: dtypes, hints, soft-cap",
            "the same of `linear_distillation`: each divergence, mixed with cross-entropy",
            "every kernel for a chunk of logits against the plain one",
            "selection and weights exactly those of the CPU",
            "policy against the CPU: kinds of heads, attention, checkpointing, `model.compile`, `model.liger`",
            "ZeRO stages 0 to 3 with one process, against each other and against the CPU",
            "a resumed run equal to a whole one, bit by bit",
            "no waiting for the device between two logs",
        ),
    ),
    Part(
        "loss",
        0.20,
        ("the op at V = 32k and 128k, D = 2048, 8k tokens × 4 heads, bf16: all forms and peers, time and memory",),
    ),
    Part(
        "step",
        0.20,
        (
            "whole steps at 1B-like shapes, V = 32k and 128k: mtp-baseline naive and fused, rho1, critic",
            "mtp-baseline's step over a plain next-token step, beside the ratio of their FLOP",
        ),
    ),
    Part(
        "training",
        0.20,
        (
            "steps of the trainer at 0.1B and 1B: seconds, tokens/s, MFU, peak memory",
            "the same at 7B, ZeRO stage 3 with offload",
        ),
    ),
    Part("decoding", 0.08, ("decoding at 0.1B, plain and drafting: milliseconds a forward, tokens/s",)),
]
NEVER_HERE = {
    "selection over ranks": "one device is one rank; `tools/bench.py --only selection` measures it over processes",
    "more than one GPU": "NCCL, ZeRO over ranks and sequence parallelism need several; on CPUs, tests/integration does",
}


@dataclass(frozen=True)
class Task:
    """What a part is asked for.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny shapes.
    """

    device: str
    quick: bool


def run_part(name: str, path: Path, task: Task) -> int:
    """Run a part in this process, its record in the file `path`; returns the exit status."""
    record = Record(path)
    record.write()
    try:
        importlib.import_module(f"gpu_checking.{name}").run(record, task)
    except ModuleNotFoundError as error:
        record.end(NOT_RUN, f"{error}; pip install --constraint constraints.txt what packages/*/pyproject.toml name")
        return 1
    except Exception as error:  # a part must not end the others: what went wrong is in the report
        traceback.print_exc()
        record.end(FAILED, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        return 1
    if record.status not in (FAILED, NOT_RUN):
        record.end(DONE)
    return 0
