"""Gradients of rows whose number is known to the device alone, so that the host waits for nothing.

This is seldom needed: a hint was wrong for more rows than were foreseen. Where it was not, kernels end at once.

Every output element has one program that writes it, and sums are in a fixed order: the same inputs give the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from wmtp_core.counted_products import PROGRAMS, add_products, write_products
from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.triton_kernels import (
    LOSS_BLOCK,
    LOSS_WARPS,
    gradients,
    on_device_of,
    peak_and_sum,
    scale_and_softcap,
    transformed,
)


@triton.jit(do_not_specialize=["first", "last"])
def _gradients_in_place_kernel(
    logits, targets, grad_losses, order, count, first, last, stride, vocabulary,
    scale: tl.constexpr, softcap: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    end = tl.minimum(tl.load(count).to(tl.int32), last)
    columns = tl.arange(0, block)
    for place in range(first + tl.program_id(0), end, tl.num_programs(0)):
        row = tl.load(order + place)
        here = logits + (place - first).to(tl.int64) * stride
        peak, total = peak_and_sum(here, vocabulary, vocabulary, scale, softcap, block)
        target, grad_loss = tl.load(targets + row), tl.load(grad_losses + row)
        for start in range(0, vocabulary, block):
            inside = start + columns < vocabulary
            z = transformed(tl.load(here + start + columns, mask=inside, other=0.0), scale, softcap)
            gradient = gradients(z, start + columns == target, peak, total, grad_loss, scale, softcap)
            tl.store(here + start + columns, gradient.to(logits.dtype.element_ty), mask=inside)


def add_remaining(
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    grad_losses: Tensor,
    order: Tensor,
    count: Tensor,
    hinted: Tensor,
    done: int,
    transform: LogitTransform,
    logits: Tensor,
) -> None:
    """Add what the rows `order[done:count]` give; nothing where `count` is no more than `done`. Nobody waits.

    Args:
        grad_hidden: `[N, D]`, written in rows that are not hinted; None: not wanted.
        grad_weight: float32 `[V, D]`, added to; None: not wanted.
        hidden: `[N, D]`, rows contiguous, as all of these.
        weight: `[V, D]`.
        targets: int64 `[N]`.
        grad_losses: float32 `[N]`.
        order: int64 `[N]`, rows.
        count: int64 `[1]`.
        hinted: bool `[N]`, the rows whose hidden state has its gradient.
        done: how many of the order are done.
        transform: of the logits.
        logits: `[r, V]` of the weight's dtype, of any content: the place for a chunk at a time.
    """
    for first in range(done, len(order), len(logits)):
        places = (order, count, first, min(first + len(logits), len(order)))
        write_products(logits, hidden, weight.T, *places, out_ordered=False)
        with on_device_of(logits):
            _gradients_in_place_kernel[(PROGRAMS,)](
                logits, targets, grad_losses, *places, logits.stride(0), len(weight),
                *scale_and_softcap(transform), block=LOSS_BLOCK, num_warps=LOSS_WARPS,
            )  # fmt: skip
        if grad_hidden is not None:
            write_products(grad_hidden, logits, weight, *places, a_ordered=False, leave=hinted)
        if grad_weight is not None:
            add_products(grad_weight, logits, hidden, *places, a_ordered=False)
