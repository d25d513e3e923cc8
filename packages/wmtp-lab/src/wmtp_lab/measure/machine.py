"""Machine, versions and commit that metrics were measured with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

_PACKAGES = [
    "torch",
    "transformers",
    "deepspeed",
    "triton",
    "datasets",
    "flash-attn",
    "liger-kernel",
    "cut-cross-entropy",
    "wmtp-core",
    "wmtp-models",
]


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return processor, cores and threads, and on CUDA the device."""
    described: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda or ""
    return described


def describe_versions() -> dict[str, str]:
    """Return versions of Python and of the packages that matter, as far as they are installed."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in _PACKAGES if name in installed}


def describe_commit(checkout: Path) -> str | None:
    """Return the git commit of a checkout, with "-dirty" where files differ from it; None without git or commits."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # there is no git
        return None
    return described.stdout.strip() or None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
