"""Kernels for the gradients of rows whose number is known to the device alone, so that the host waits for nothing.

A program looks at that number and ends at once where there is nothing for it. This is seldom needed (a hint was wrong
for more rows than were foreseen), and logits are formed anew for every tile: exact, and slow.

Every output element has one program that writes it, and sums are in a fixed order: the same inputs give the same bits.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.triton_kernels import gradients, on_device_of, scale_and_softcap, transformed

_ROWS, _TOKENS, _WIDTH = 32, 64, 64  # of a tile
# The interpreter holds bfloat16 as integers, and would multiply these.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _product(a, b):
    """Return a @ b in float32."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _logits_tile(
    hidden, weight, rows, real, tokens, vocabulary, width,
    scale: tl.constexpr, softcap: tl.constexpr, row_block: tl.constexpr, token_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    """Return the transformed logits of some rows at some tokens, rounded as where they are formed in chunks."""
    logits = tl.zeros((row_block, token_block), tl.float32)
    for start in range(0, width, width_block):
        d = start + tl.arange(0, width_block)
        h = tl.load(hidden + rows[:, None] * width + d[None, :], mask=real[:, None] & (d < width)[None, :], other=0.0)
        mask = (tokens < vocabulary)[None, :] & (d < width)[:, None]
        w = tl.load(weight + tokens[None, :] * width + d[:, None], mask=mask, other=0.0)
        logits += _product(h, w)
    return transformed(logits.to(weight.dtype.element_ty), scale, softcap)


@triton.jit(do_not_specialize=["done"])
def _remaining_sums_kernel(
    peaks, sums, hidden, weight, order, count, done, vocabulary, width,
    scale: tl.constexpr, softcap: tl.constexpr, row_block: tl.constexpr, token_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    remaining = tl.load(count)
    first = done + tl.program_id(0) * row_block
    if first < remaining:
        real = first + tl.arange(0, row_block) < remaining
        rows = tl.load(order + first + tl.arange(0, row_block), mask=real, other=0)
        peak = tl.full((row_block,), -float("inf"), tl.float32)
        total = tl.zeros((row_block,), tl.float32)
        for start in range(0, vocabulary, token_block):
            tokens = start + tl.arange(0, token_block).to(tl.int64)
            z = _logits_tile(
                hidden,
                weight,
                rows,
                real,
                tokens,
                vocabulary,
                width,
                scale,
                softcap,
                row_block,
                token_block,
                width_block,
            )
            z = tl.where((tokens < vocabulary)[None, :], z, -float("inf"))
            higher = tl.maximum(peak, tl.max(z, axis=1))
            total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[:, None]), axis=1)
            peak = higher
        tl.store(peaks + rows, peak, mask=real)
        tl.store(sums + rows, total, mask=real)


@triton.jit
def _gradients_tile(
    hidden, weight, targets, peaks, sums, grad_losses, rows, real, tokens, vocabulary, width,
    scale: tl.constexpr, softcap: tl.constexpr, row_block: tl.constexpr, token_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    """Return the gradients of the logits of some rows at some tokens, in the weight's dtype."""
    z = _logits_tile(
        hidden, weight, rows, real, tokens, vocabulary, width, scale, softcap, row_block, token_block, width_block
    )
    target = tl.load(targets + rows, mask=real, other=0)
    peak = tl.load(peaks + rows, mask=real, other=0.0)
    total = tl.load(sums + rows, mask=real, other=1.0)
    grad_loss = tl.load(grad_losses + rows, mask=real, other=0.0)
    gradient = gradients(
        z, tokens[None, :] == target[:, None], peak[:, None], total[:, None], grad_loss[:, None], scale, softcap
    )
    counts = real[:, None] & (tokens < vocabulary)[None, :]
    return tl.where(counts, gradient, 0.0).to(weight.dtype.element_ty)


@triton.jit(do_not_specialize=["done"])
def _remaining_hidden_kernel(
    grad_hidden, hidden, weight, targets, peaks, sums, grad_losses, order, count, hinted, done, vocabulary, width,
    scale: tl.constexpr, softcap: tl.constexpr, row_block: tl.constexpr, token_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    remaining = tl.load(count)
    places = done + tl.program_id(0) * row_block + tl.arange(0, row_block)
    if done + tl.program_id(0) * row_block < remaining:
        real = places < remaining
        rows = tl.load(order + places, mask=real, other=0)
        out = tl.program_id(1) * width_block + tl.arange(0, width_block)
        gradient = tl.zeros((row_block, width_block), tl.float32)
        for start in range(0, vocabulary, token_block):
            tokens = start + tl.arange(0, token_block).to(tl.int64)
            tile = _gradients_tile(
                hidden, weight, targets, peaks, sums, grad_losses, rows, real, tokens, vocabulary, width,
                scale, softcap, row_block, token_block, width_block,
            )  # fmt: skip
            mask = (tokens < vocabulary)[:, None] & (out < width)[None, :]
            w = tl.load(weight + tokens[:, None] * width + out[None, :], mask=mask, other=0.0)
            gradient += _product(tile, w)
        missing = real & (tl.load(hinted + rows, mask=real, other=1) == 0)
        mask = missing[:, None] & (out < width)[None, :]
        tl.store(
            grad_hidden + rows[:, None] * width + out[None, :], gradient.to(grad_hidden.dtype.element_ty), mask=mask
        )


@triton.jit(do_not_specialize=["done"])
def _remaining_weight_kernel(
    grad_weight, hidden, weight, targets, peaks, sums, grad_losses, order, count, done, vocabulary, width,
    scale: tl.constexpr, softcap: tl.constexpr, row_block: tl.constexpr, token_block: tl.constexpr,
    width_block: tl.constexpr,
):  # fmt: skip
    remaining = tl.load(count)
    if done < remaining:
        tokens = tl.program_id(0).to(tl.int64) * token_block + tl.arange(0, token_block)
        out = tl.program_id(1) * width_block + tl.arange(0, width_block)
        gradient = tl.zeros((token_block, width_block), tl.float32)
        for start in range(done, remaining, row_block):
            places = start + tl.arange(0, row_block)
            real = places < remaining
            rows = tl.load(order + places, mask=real, other=0)
            tile = _gradients_tile(
                hidden, weight, targets, peaks, sums, grad_losses, rows, real, tokens, vocabulary, width,
                scale, softcap, row_block, token_block, width_block,
            )  # fmt: skip
            mask = real[:, None] & (out < width)[None, :]
            h = tl.load(hidden + rows[:, None] * width + out[None, :], mask=mask, other=0.0)
            gradient += _product(tl.trans(tile), h)
        place = grad_weight + tokens[:, None] * width + out[None, :]
        mask = (tokens < vocabulary)[:, None] & (out < width)[None, :]
        tl.store(place, tl.load(place, mask=mask, other=0.0) + gradient, mask=mask)


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
) -> None:
    """Add what the rows `order[done:count]` give; nothing where `count` is no more than `done`. Nobody waits.

    Args:
        grad_hidden: `[N, D]`, written in rows that are not hinted; None: not wanted.
        grad_weight: float32 `[V, D]`, added to; None: not wanted.
        hidden: `[N, D]`, contiguous.
        weight: `[V, D]`, contiguous.
        targets: int64 `[N]`.
        grad_losses: float32 `[N]`.
        order: int64 `[N]`, rows.
        count: int64 `[1]`.
        hinted: bool `[N]`, the rows whose hidden state has its gradient.
        done: how many of the order are done.
        transform: of the logits.
    """
    assert all(t is None or t.is_contiguous() for t in (grad_hidden, grad_weight, hidden, weight))
    (rows, width), vocabulary = hidden.shape, len(weight)
    peaks, sums = (torch.empty(rows, device=hidden.device) for _ in range(2))
    how = (done, vocabulary, width, *scale_and_softcap(transform))
    tiles = {"row_block": _ROWS, "token_block": _TOKENS, "width_block": _WIDTH}
    over_rows, over_width = triton.cdiv(rows - done, _ROWS), triton.cdiv(width, _WIDTH)
    with on_device_of(hidden):
        _remaining_sums_kernel[(over_rows,)](peaks, sums, hidden, weight, order, count, *how, **tiles)
        shared = (hidden, weight, targets, peaks, sums, grad_losses, order, count)
        if grad_hidden is not None:
            _remaining_hidden_kernel[(over_rows, over_width)](grad_hidden, *shared, hinted, *how, **tiles)
        if grad_weight is not None:
            _remaining_weight_kernel[(triton.cdiv(vocabulary, _TOKENS), over_width)](
                grad_weight, *shared, *how, **tiles
            )
