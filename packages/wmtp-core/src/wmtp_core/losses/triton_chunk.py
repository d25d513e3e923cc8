"""Chunks of logits on a GPU: products by cuBLAS, all else by Triton kernels that read each logit once."""

from typing import Any

import torch
from torch import Tensor

from wmtp_core.losses.logits_chunk import ChunkedLogits, LogitsChunk
from wmtp_core.losses.remaining_rows import add_remaining
from wmtp_core.losses.triton_kernels import losses_of_logits, write_gradients


class TritonChunkedLogits(ChunkedLogits):
    """Forms chunks in the weight's own dtype."""

    def form(self, hidden: Tensor, targets: Tensor) -> LogitsChunk:
        """Form a chunk as the base class does; rows of gradient 0 give 0, whatever their logits."""
        logits = torch.mm(hidden, self.weight.T, out=self.buffer("logits", len(hidden), self.weight.dtype))
        return _TritonChunk(self, logits, targets)

    def add_beyond(self, gradients: Any, missing: Tensor, targets: Tensor, order: Tensor, done: int) -> None:
        """Add what the rows `order[done:]` lack; nobody waits for their number."""
        add_remaining(
            gradients.grad_hidden,
            gradients.grad_weight,
            gradients.inputs.contiguous(),
            self.weight.contiguous(),
            targets,
            missing,
            order,
            (missing != 0).sum(dim=0, keepdim=True),
            gradients.hinted != 0,
            done,
            self.transform,
            self.buffer("logits", self.rows, self.weight.dtype),
        )


class _TritonChunk:
    def __init__(self, buffers: TritonChunkedLogits, logits: Tensor, targets: Tensor) -> None:
        self._buffers, self._logits, self._targets = buffers, logits, targets
        self.losses, self._peaks, self._sums = losses_of_logits(logits, targets, buffers.transform)
        self.ce = self.losses

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        logits = self._logits
        if kept is None:
            kept, out = torch.arange(len(logits), device=logits.device), logits
        else:
            out = self._buffers.buffer("kept", len(kept), logits.dtype)
        return write_gradients(
            out, logits, kept, self._targets, self._peaks, self._sums, grad_losses, self._buffers.transform
        )
