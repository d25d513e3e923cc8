"""The machine and its software, and the speed of one large product on it: what every other figure is read against."""

import subprocess

import torch

from gpu_checking.parts import Task
from gpu_checking.record import Record
from wmtp_lab.measure.machine import describe_machine, describe_versions
from wmtp_lab.measure.stopwatch import interleaved, spread
from wmtp_lab.tables import markdown_table
from wmtp_train.metrics.mfu import peak_flop_per_second

_SMI = ["driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"]


def run(record: Record, task: Task) -> None:
    """Describe the machine, and time a product in bf16."""
    device = torch.device(task.device)
    rows = {**describe_machine(device), **_nvidia_smi(record, task), **_memory(), **describe_versions()}
    for package in ("flash-attn", "liger-kernel", "cut-cross-entropy"):
        rows.setdefault(package, "not installed")
    table = markdown_table(["environment", ""], [[name, str(value)] for name, value in rows.items()])
    record.put("environment", rows, table)
    size = 256 if task.quick else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    samples = interleaved({"product": lambda: a @ b}, 5, device)["product"]
    flop = 2 * size**3 / spread([sample.get("cuda", sample.get("wall", 0.0)) for sample in samples]).median
    peak = peak_flop_per_second(device, None)
    share = f", {flop / peak:.0%} of the {peak / 1e12:.0f} TFLOP/s that MFU is a share of" if peak else ""
    record.put(
        "product",
        {"size": size, "flop_per_second": flop},
        f"A product of {size}³ in bf16: {flop / 1e12:.3g} TFLOP/s{share}.",
    )


def _nvidia_smi(record: Record, task: Task) -> dict[str, str]:
    if task.device == "cpu":
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "--id=0"]
    try:
        values = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        record.miss("driver and clocks", f"nvidia-smi: {error}")
        return {}
    return dict(zip(_SMI, values.split(", "), strict=True))


def _memory() -> dict[str, str]:
    return {"main memory, available": f"{available_memory() / 2**30:.0f} GiB"}


def available_memory() -> int:
    """Return bytes of main memory that are free or can be freed, as Linux tells it."""
    with open("/proc/meminfo") as lines:
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024
