"""Chunks of distilled logits on a GPU: products by cuBLAS, and kernels that read both sides' logits together.

As in `triton_kernels`, a program has one row or a piece of one, and every output element has one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wmtp_core.losses.distillation import DistilledLogits
from wmtp_core.losses.logits_chunk import LogitsChunk
from wmtp_core.losses.triton_kernels import losses_of_logits, on_device_of, scale_and_softcap, transformed

_LOSS_BLOCK, _LOSS_WARPS = 4096, 8
_GRADIENT_BLOCK, _GRADIENT_WARPS = 2048, 4
_KINDS = {"forward-kl": 0, "reverse-kl": 1, "total-variation": 2}


@triton.jit
def _log_probability(logits, columns, vocabulary, peak, total, scale: tl.constexpr, softcap: tl.constexpr):
    z = transformed(tl.load(logits + columns, mask=columns < vocabulary, other=0.0), scale, softcap)
    return z, z - peak - tl.log(total)


@triton.jit
def _divergences_kernel(
    apart, slopes, logits, teacher, index, peaks, sums, teacher_peaks, teacher_sums, stride, teacher_stride, vocabulary,
    kind: tl.constexpr, scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    of = tl.load(index + row)
    peak, total = tl.load(peaks + row), tl.load(sums + row)
    teacher_peak, teacher_total = tl.load(teacher_peaks + of), tl.load(teacher_sums + of)
    found = tl.full((), 0.0, tl.float32)
    slope = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, block):
        columns = start + tl.arange(0, block)
        _, student = _log_probability(logits + row * stride, columns, vocabulary, peak, total, scale, softcap)
        _, said = _log_probability(
            teacher + of * teacher_stride, columns, vocabulary, teacher_peak, teacher_total, scale, softcap
        )
        p, q = tl.exp(said), tl.exp(student)
        if kind == 0:
            terms = p * (said - student)
        elif kind == 1:
            terms = q * (student - said)
        else:
            terms = tl.abs(p - q) / 2
            signs = tl.where(q > p, 0.5, 0.0) - tl.where(q < p, 0.5, 0.0)
            slope += tl.sum(tl.where(columns < vocabulary, q * signs, 0.0), axis=0)
        found += tl.sum(tl.where(columns < vocabulary, terms, 0.0), axis=0)
    if kind == 1:
        slope = found
    tl.store(apart + row, tl.where(found < 0, 0.0, found))
    tl.store(slopes + row, slope)


@triton.jit
def _gradients_kernel(
    out, logits, teacher, kept, index, targets, peaks, sums, teacher_peaks, teacher_sums, slopes, grad_losses,
    out_stride, stride, teacher_stride, vocabulary, share,
    kind: tl.constexpr, scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(kept + place)
    of = tl.load(index + row)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    grad_loss = tl.load(grad_losses + place)
    z, student = _log_probability(
        logits + row * stride, columns, vocabulary, tl.load(peaks + row), tl.load(sums + row), scale, softcap
    )
    _, said = _log_probability(
        teacher + of * teacher_stride, columns, vocabulary, tl.load(teacher_peaks + of), tl.load(teacher_sums + of),
        scale, softcap,
    )  # fmt: skip
    p, q = tl.exp(said), tl.exp(student)
    if kind == 0:
        apart = q - p
    elif kind == 1:
        apart = q * (student - said - tl.load(slopes + row))
    else:
        apart = q * (tl.where(q > p, 0.5, 0.0) - tl.where(q < p, 0.5, 0.0) - tl.load(slopes + row))
    at_target = tl.where(columns == tl.load(targets + row), 1.0, 0.0)
    gradient = grad_loss * ((1.0 - share) * apart + share * (q - at_target))
    if scale != 1.0:
        gradient = gradient * scale
    if softcap != 0.0:
        gradient = gradient * (1.0 - (z / softcap) * (z / softcap))
    gradient = tl.where(grad_loss == 0, 0.0, gradient)  # whatever the logits, so that a bad row spoils no sum
    tl.store(out + place * out_stride + columns, gradient.to(out.dtype.element_ty), mask=columns < vocabulary)


class TritonDistilledLogits(DistilledLogits):
    """Forms chunks in the weight's own dtype; rows of gradient 0 give 0, whatever their logits."""

    def compare(self, hidden: Tensor, targets: Tensor, teacher: Tensor, index: Tensor) -> LogitsChunk:
        """Form a chunk as the base class does."""
        said = torch.mm(teacher, self.weight.T, out=self.buffer("teacher", len(teacher), self.weight.dtype))
        logits = torch.mm(hidden, self.weight.T, out=self.buffer("logits", len(hidden), self.weight.dtype))
        return _TritonDistilledChunk(self, logits, targets, said, index)


class _TritonDistilledChunk:
    def __init__(
        self, buffers: TritonDistilledLogits, logits: Tensor, targets: Tensor, teacher: Tensor, index: Tensor
    ) -> None:
        self._buffers, self._logits, self._targets = buffers, logits, targets
        self.ce, peaks, sums = losses_of_logits(logits, targets, buffers.transform)
        any_token = torch.zeros(len(teacher), dtype=torch.int64, device=teacher.device)
        _, teacher_peaks, teacher_sums = losses_of_logits(teacher, any_token, buffers.transform)
        apart, slopes = torch.empty_like(self.ce), torch.empty_like(self.ce)
        self._of_rows = (index, targets, peaks, sums, teacher_peaks, teacher_sums, slopes)
        self._teacher = teacher
        kind, share = _KINDS[buffers.how.divergence], buffers.how.cross_entropy
        with on_device_of(logits):
            _divergences_kernel[(len(logits),)](
                apart, slopes, logits, teacher, index, peaks, sums, teacher_peaks, teacher_sums,
                logits.stride(0), teacher.stride(0), logits.shape[1],
                kind, *scale_and_softcap(buffers.transform), block=_LOSS_BLOCK, num_warps=_LOSS_WARPS,
            )  # fmt: skip
        self.losses = (1 - share) * apart + share * self.ce

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        logits, teacher, buffers = self._logits, self._teacher, self._buffers
        if kept is None:
            kept, out = torch.arange(len(logits), device=logits.device), logits
        else:
            out = buffers.buffer("kept", len(kept), logits.dtype)
        with on_device_of(logits):
            _gradients_kernel[(len(kept), triton.cdiv(logits.shape[1], _GRADIENT_BLOCK))](
                out, logits, teacher, kept, *self._of_rows, grad_losses,
                out.stride(0), logits.stride(0), teacher.stride(0), logits.shape[1], buffers.how.cross_entropy,
                _KINDS[buffers.how.divergence], *scale_and_softcap(buffers.transform),
                block=_GRADIENT_BLOCK, num_warps=_GRADIENT_WARPS,
            )  # fmt: skip
        return out
