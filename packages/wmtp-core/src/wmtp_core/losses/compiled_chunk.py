"""Chunks of logits on an accelerator that has no Triton of its own, fused by torch.compile."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.logits_chunk import ChunkedLogits, LogitsChunk


class CompiledChunkedLogits(ChunkedLogits):
    """The same for an accelerator without Triton: fused kernels, one read of the logits each, in the weight's dtype.

    `TORCHDYNAMO_DISABLE=1` in the environment runs them operation by operation, where no compiler is installed.
    """

    def form(self, hidden: Tensor, targets: Tensor) -> LogitsChunk:
        """Form a chunk as the base class does; rows of gradient 0 give 0, whatever their logits."""
        logits = torch.mm(hidden, self.weight.T, out=self.buffer("logits", len(hidden), self.weight.dtype))
        return _CompiledChunk(self, logits, targets)


class _CompiledChunk:
    def __init__(self, buffers: ChunkedLogits, logits: Tensor, targets: Tensor) -> None:
        self._buffers, self._logits, self._targets = buffers, logits, targets
        self._how = (buffers.transform.scale, buffers.transform.softcap)
        self.losses, self._peaks, self._sums = _compiled(_losses)(logits, targets, *self._how)
        self.ce = self.losses

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        if kept is None:
            write, scales = _compiled(_write_gradients), grad_losses / self._sums
            return write(self._logits, self._logits, self._peaks, scales, self._targets, grad_losses, *self._how)
        write, scales = _compiled(_write_kept_gradients), grad_losses / self._sums[kept]
        out = self._buffers.buffer("kept", len(kept), self._logits.dtype)
        targets = self._targets[kept]
        return write(out, self._logits, kept, self._peaks[kept], scales, targets, grad_losses, *self._how)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, only once it is called: the compiler takes seconds to import."""
    return torch.compile(function, dynamic=True)


def _losses(logits: Tensor, targets: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, and of each row the largest logit and the sum of exp(logit − largest).

    As one number they would round.
    """
    transformed = LogitTransform(scale, softcap)(logits.float())
    peaks = transformed.amax(dim=-1)
    shifted = transformed - peaks[:, None]
    sums = shifted.exp().sum(dim=-1)
    return (sums.log() - shifted.gather(1, targets[:, None]).squeeze(1)).clamp(min=0), peaks, sums


def _write_gradients(
    out: Tensor,
    logits: Tensor,
    peaks: Tensor,
    scales: Tensor,
    targets: Tensor,
    grad_losses: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    at_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]  # [k, V]
    transformed = LogitTransform(scale, softcap)(logits.float())
    gradients = (transformed - peaks[:, None]).exp() * scales[:, None] - at_target * grad_losses[:, None]
    if scale != 1:
        gradients = gradients * scale
    if softcap is not None:
        gradients = gradients * (1 - (transformed / softcap).square())
    return out.copy_(gradients.where(grad_losses[:, None] != 0, 0))


def _write_kept_gradients(out: Tensor, logits: Tensor, kept: Tensor, *others: Any) -> Tensor:
    return _write_gradients(out, logits[kept], *others)
