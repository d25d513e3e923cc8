"""Kernels for what the loss does to logits on a GPU, beside the products that cuBLAS forms.

`losses_of_logits` reads a chunk of logits once, and `write_gradients` reads what is kept of it once more and writes its
gradients. Both are bound by memory, so a program has one row or a piece of one, and nothing but its sums in registers.

Rows may have room behind the vocabulary, and buffers for a vocabulary such as 50257 do: read and written are then
multiples of 16, which is what makes loads wide.

Every output element has one program that writes it, and sums are in a fixed order: the same inputs give the same bits.
`TRITON_INTERPRET=1` runs all of this on tensors of a CPU.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wmtp_core.losses.logit_transform import LogitTransform

# Of bf16, 16 bytes a thread and load, which is the widest there is: two loads of 256 threads, and two of 128.
LOSS_BLOCK, LOSS_WARPS = 4096, 8
_GRADIENT_BLOCK, _GRADIENT_WARPS = 2048, 4


@triton.jit
def transformed(logits, scale: tl.constexpr, softcap: tl.constexpr):
    """Return the float32 logits after a `LogitTransform`; a softcap of 0 is none."""
    z = logits.to(tl.float32)
    if scale != 1.0:
        z = z * scale
    if softcap != 0.0:
        x = z / softcap
        decay = tl.exp(-2.0 * tl.abs(x))
        size = (1.0 - decay) / (1.0 + decay)
        tanh = tl.where(x < 0, -size, size)
        square = x * x  # near 0 the difference above has no digits left
        near_0 = x * (1.0 - square * (1.0 / 3 - square * (2.0 / 15 - square * (17.0 / 315))))
        z = softcap * tl.where(tl.abs(x) < 0.1, near_0, tanh)
    return z


@triton.jit
def gradients(z, is_target, peak, total, grad_loss, scale: tl.constexpr, softcap: tl.constexpr):
    """Return grad_loss · (softmax − 1 at the target), times the derivative of the transform that gave z."""
    gradient = tl.exp(z - peak) * (grad_loss / total) - tl.where(is_target, grad_loss, 0.0)
    if scale != 1.0:
        gradient = gradient * scale
    if softcap != 0.0:
        gradient = gradient * (1.0 - (z / softcap) * (z / softcap))
    return gradient


@triton.jit
def peak_and_sum(first, vocabulary, padded, scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr):
    """Return the largest transformed logit z of a row, and the sum of exp(z − largest)."""
    columns = tl.arange(0, block)
    peak = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocabulary, block):
        z = transformed(tl.load(first + start + columns, mask=start + columns < padded, other=0.0), scale, softcap)
        z = tl.where(start + columns < vocabulary, z, -float("inf"))
        higher = tl.maximum(peak, tl.max(z, axis=0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), axis=0)
        peak = higher
    return peak, total


@triton.jit
def _losses_kernel(
    logits, targets, losses, peaks, sums, stride, vocabulary, padded,
    scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = logits + row * stride
    peak, total = peak_and_sum(first, vocabulary, padded, scale, softcap, block)
    target = tl.load(targets + row)
    is_token = (target >= 0) & (target < vocabulary)  # another is no token, and its loss no number
    at_target = transformed(tl.load(first + target, mask=is_token, other=0.0), scale, softcap)
    loss = tl.log(total) - (at_target - peak)
    tl.store(losses + row, tl.where(is_token, tl.where(loss < 0, 0.0, loss), float("nan")))
    tl.store(peaks + row, peak)
    tl.store(sums + row, total)


@triton.jit
def _gradients_kernel(
    out, logits, kept, targets, peaks, sums, grad_losses, out_stride, stride, vocabulary, padded,
    scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(kept + place)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < padded
    grad_loss = tl.load(grad_losses + place)
    z = transformed(tl.load(logits + row * stride + columns, mask=inside, other=0.0), scale, softcap)
    target, peak, total = tl.load(targets + row), tl.load(peaks + row), tl.load(sums + row)
    gradient = gradients(z, columns == target, peak, total, grad_loss, scale, softcap)
    gradient = tl.where(columns < vocabulary, gradient, 0.0)
    gradient = tl.where(grad_loss == 0, 0.0, gradient)  # whatever the logits, so that a bad row spoils no sum
    tl.store(out + place * out_stride + columns, gradient.to(out.dtype.element_ty), mask=inside)


def losses_of_logits(logits: Tensor, targets: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross-entropy of each row in one read of its logits.

    Args:
        logits: `[r, V]` float32 or bfloat16, rows contiguous; before the transform.
        targets: int64 `[r]`.
        transform: of the logits.

    Returns:
        losses, the largest transformed logit, and the sum of exp(logit − largest): float32 `[r]` each.
    """
    losses, peaks, sums = (torch.empty(len(logits), device=logits.device) for _ in range(3))
    with on_device_of(logits):
        _losses_kernel[(len(logits),)](
            logits, targets, losses, peaks, sums, logits.stride(0), logits.shape[1], _padded(logits),
            *scale_and_softcap(transform), block=LOSS_BLOCK, num_warps=LOSS_WARPS,
        )  # fmt: skip
    return losses, peaks, sums


def write_gradients(
    out: Tensor,
    logits: Tensor,
    kept: Tensor,
    targets: Tensor,
    peaks: Tensor,
    sums: Tensor,
    grad_losses: Tensor,
    transform: LogitTransform,
) -> Tensor:
    """Write the gradients of some rows of logits; rows of gradient 0 give 0 whatever their logits.

    Args:
        out: `[k, V]`; the logits themselves where all rows are kept, in order. Where rows have room for it, up to 15
            elements behind V become 0.
        logits: `[r, V]`.
        kept: int64 `[k]`, rows.
        targets: int64 `[r]`.
        peaks, sums: of `losses_of_logits`.
        grad_losses: float32 `[k]`.
        transform: of the logits.

    Returns:
        `out`.
    """
    padded = min(_padded(logits), _padded(out))
    with on_device_of(logits):
        _gradients_kernel[(len(kept), triton.cdiv(padded, _GRADIENT_BLOCK))](
            out, logits, kept, targets, peaks, sums, grad_losses,
            out.stride(0), logits.stride(0), logits.shape[1], padded,
            *scale_and_softcap(transform), block=_GRADIENT_BLOCK, num_warps=_GRADIENT_WARPS,
        )  # fmt: skip
    return out


def _padded(logits: Tensor) -> int:
    """Return V up to a multiple of 16, if rows have room for it: only under such a mask are loads 16 bytes wide."""
    padded = -(-logits.shape[1] // 16) * 16
    return padded if padded <= logits.stride(0) else logits.shape[1]


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch kernels in here where a tensor is: Triton takes the current device, whatever it is given."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def scale_and_softcap(transform: LogitTransform) -> tuple[float, float]:
    """Return a transform as the kernels take it: a softcap of 0 is none."""
    return float(transform.scale), float(transform.softcap or 0.0)
