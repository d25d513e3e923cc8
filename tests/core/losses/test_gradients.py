"""The weight's gradient of half precision is summed in float32, and where torch can, of unrounded products."""

import pytest
import torch

from wmtp_core.losses import gradients
from wmtp_core.losses.gradients import Gradients

ROWS, WIDTH, VOCABULARY, CHUNKS = 64, 16, 32, 8


class Chunk:
    """Logits whose gradients are given."""

    def __init__(self, grad_logits):
        self.grad_logits = grad_logits

    def gradients(self, kept, grad_losses):
        return self.grad_logits


def weight_gradient_error(rows=ROWS):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, WIDTH, generator=draw).bfloat16()
    grads = torch.randn(rows, VOCABULARY, generator=draw).bfloat16()
    sums = Gradients(inputs, torch.zeros(VOCABULARY, WIDTH, dtype=torch.bfloat16), (True, True))
    for chosen in torch.arange(rows).chunk(CHUNKS):
        sums.add(Chunk(grads[chosen]), chosen, None, torch.ones(rows))
    assert sums.grad_weight.dtype == torch.float32
    exact = grads.double().T @ inputs.double()
    return float((sums.grad_weight.double() - exact).norm() / exact.norm())


def addmm_of_cuda(total, left, right, *, out_dtype, out):
    """torch.addmm as CUDA has it: products of half precision, added in float32, over what is there."""
    assert (left.dtype, right.dtype, total.dtype, out_dtype) == (torch.bfloat16,) * 2 + (torch.float32,) * 2
    return out.copy_(total + left.float() @ right.float())


def test_on_a_cpu_each_chunk_is_rounded_before_it_is_added():
    assert not gradients.multiplies_into_float32(torch.zeros(1))
    assert 1e-4 < weight_gradient_error() < 4e-3


def test_where_torch_multiplies_into_float32_nothing_is_rounded(monkeypatch):
    monkeypatch.setattr(gradients, "multiplies_into_float32", lambda factor: True)
    monkeypatch.setattr(torch, "addmm", addmm_of_cuda)
    assert weight_gradient_error() < 1e-6


@pytest.mark.parametrize(("version", "expected"), [("2.9.1", False), ("2.10.0", True), ("2.13.0+cu130", True)])
def test_the_version_decides(monkeypatch, version, expected):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    factor = type("OnCuda", (), {"is_cuda": True})()
    assert gradients.multiplies_into_float32(factor) is expected
