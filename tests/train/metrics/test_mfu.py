import pytest
import torch

from wmtp_train.metrics.mfu import peak_flop_per_second

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_known_devices_have_the_peak_of_their_data_sheet(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flop_per_second(CUDA, None) == 1e12 * tflops
    assert peak_flop_per_second(CUDA, 100) == 1e14


def test_of_other_devices_only_the_setting_says_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H20")
    assert peak_flop_per_second(CUDA, None) is None
    assert peak_flop_per_second(CPU, None) is None
    assert peak_flop_per_second(CPU, 0.5) == 5e11
