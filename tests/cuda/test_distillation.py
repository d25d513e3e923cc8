"""Heads that learn from head 0, on the device, against a dense computation in float64 on the CPU."""

import os

import pytest
import torch

import wmtp_core.losses.fused
from wmtp_core import Distillation, GradientHint, LogitTransform, linear_distillation
from wmtp_core.losses.divergences import divergence
from wmtp_core.losses.hints import StaticHint

pytestmark = pytest.mark.cuda
ON_GPU = os.environ.get("WMTP_TEST_DEVICE", "cuda") == "cuda"
POSITIONS, HEADS, ROWS = (700, 3, 512) if ON_GPU else (70, 3, 120)  # interpreted kernels take long
WIDTH, VOCABULARY = 200, 9001
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "total-variation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses_and_gradients_are_those_of_float64(device, dtype, kind, hinted, monkeypatch):
    monkeypatch.setattr(wmtp_core.losses.fused, "rows_per_chunk", lambda weight: ROWS)
    draw, transform = torch.Generator().manual_seed(0), LogitTransform(0.5, 15.0)
    teacher, hidden = (
        torch.randn(POSITIONS, WIDTH, generator=draw),
        torch.randn(POSITIONS * HEADS, WIDTH, generator=draw),
    )
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw) / 8
    targets = torch.randint(VOCABULARY, (POSITIONS * HEADS,), generator=draw)
    targets[torch.rand(len(targets), generator=draw) < 0.2] = -100
    targets.view(POSITIONS, HEADS)[-HEADS:] = -100
    gradient = torch.rand(POSITIONS * HEADS, generator=draw) * (targets != -100)
    teacher, hidden, weight = (tensor.to(device, dtype) for tensor in (teacher, hidden, weight))
    hidden.requires_grad_(), weight.requires_grad_()
    hint = GradientHint(StaticHint(gradient.view(1, POSITIONS, HEADS).to(device)), torch.ones(HEADS, device=device))
    losses, _ = linear_distillation(
        hidden, weight, targets.to(device), Distillation(teacher, kind, 0.25), hint=hint if hinted else None,
        transform=transform,
    )  # fmt: skip
    losses.backward(gradient.to(device))

    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in (hidden, weight)]
    said = transform(teacher.double().cpu() @ exact[1].detach().T).log_softmax(-1)
    rows = torch.arange(POSITIONS * HEADS)
    student = transform(exact[0] @ exact[1].T).log_softmax(-1)
    apart = divergence(kind, said[(rows // HEADS + rows % HEADS + 1).clamp(max=POSITIONS - 1)], student)
    ce = -student.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    expected = (0.75 * apart + 0.25 * ce).where(targets != -100, 0)
    expected.backward(gradient.double())
    found = [losses.detach(), hidden.grad, weight.grad]
    for mine, theirs in zip(found, [expected.detach(), exact[0].grad, exact[1].grad], strict=True):
        assert (mine.double().cpu() - theirs).norm() < TOLERANCE[dtype] * theirs.norm()
