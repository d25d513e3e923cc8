"""Problems for the fused loss, and how a result is held against float64."""

import numpy as np
import torch

import wmtp_core.losses.distillation
import wmtp_core.losses.fused
import wmtp_core.losses.gradients
import wmtp_core.losses.logits_chunk

ROWS, WIDTH, VOCABULARY, HEADS = 40, 8, 64, 4
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


def example(seed=0, rows=ROWS, dtype=torch.float32, scale=1.0):
    """hidden, weight (both leaves), targets with ignored ones, and an incoming gradient with zeros."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, WIDTH, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.25] = -100
    grad = torch.randn(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.5)
    return hidden, weight, targets, grad


def assert_close(actual, expected, relative):
    """Of norms: a sum whose terms cancel has no relative accuracy of its own."""
    actual, expected = actual.detach().double().numpy(), np.asarray(expected)
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(actual - expected) <= relative * np.linalg.norm(expected)


def as_if_on_accelerator(monkeypatch, answer, triton=False):
    losses = wmtp_core.losses
    for module in (losses.distillation, losses.fused, losses.gradients, losses.logits_chunk):
        monkeypatch.setattr(module, "on_accelerator", lambda tensor: answer)
    for module in (losses.distillation, losses.logits_chunk):
        monkeypatch.setattr(module, "has_triton", lambda tensor: triton)


class Hint:
    """A hint made of a function."""

    def __init__(self, function, share=1.0, wrong=0.1):
        self.function, self.share, self.wrong = function, share, wrong

    def __call__(self, positions, ce):
        return self.function(positions, ce)
