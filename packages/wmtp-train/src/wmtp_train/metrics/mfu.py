"""Model FLOP utilization: what a run does of what its devices could (PaLM, Chowdhery et al., arXiv 2204.02311, B)."""

import re

import torch

# bf16, dense, in TFLOP/s, by the vendors' data sheets; the first name that is a word of the device's counts.
_PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800": 989,
    "H200 NVL": 835,
    "H200": 989,
    "GH200": 989,
    "B200": 2250,
    "GB200": 2500,
    "A100": 312,
    "A800": 312,
    "A40": 150,
    "A30": 165,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "MI300X": 1307,
    "MI325X": 1307,
}


def peak_flop_per_second(device: torch.device, tflops: float | None) -> float | None:
    """Return what one device can do at most, in FLOP a second; None where nobody says.

    Args:
        device: where a process computes.
        tflops: what the settings say, which goes before the table.
    """
    if tflops is None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tflops = next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)
    return None if tflops is None else 1e12 * tflops
