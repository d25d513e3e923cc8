"""Matrix products of rows whose number is known to the device alone, so that the host waits for nothing.

A fixed number of programs shares the tiles that there are, and ends at once where there is none. Rows stand in `order`,
those that count first: a product takes the places `first` up to `count`, or up to `last` where that is less.

Every output element has one program that writes it, and sums are in a fixed order: the same inputs give the same bits.
`TRITON_INTERPRET=1` runs all of this on tensors of a CPU.
"""

import os

import triton
import triton.language as tl
from torch import Tensor

from wmtp_core.losses.triton_kernels import on_device_of

PROGRAMS = 4 * 132
"""A few for each multiprocessor of a large GPU; more would only end sooner."""
_TILE = {"row_block": 64, "column_block": 128, "depth_block": 32}
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
if _INTERPRETED:
    PROGRAMS = 4  # one after the other


@triton.jit
def _product(a, b):
    """Return a @ b in float32."""
    if _INTERPRETED:  # which holds bfloat16 as integers, and would multiply these
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["first", "last"])
def _rows_kernel(
    out, a, b, order, count, leave, first, last, columns, depth,
    out_stride, a_stride, b_stride_depth, b_stride_column,
    a_ordered: tl.constexpr, out_ordered: tl.constexpr, leaves: tl.constexpr,
    row_block: tl.constexpr, column_block: tl.constexpr, depth_block: tl.constexpr,
):  # fmt: skip
    end = tl.minimum(tl.load(count).to(tl.int32), last)
    row_tiles = tl.cdiv(tl.maximum(end - first, 0), row_block)
    for tile in range(tl.program_id(0), row_tiles * tl.cdiv(columns, column_block), tl.num_programs(0)):
        places = first + (tile % row_tiles) * row_block + tl.arange(0, row_block)  # neighbors read the same part of b
        real = places < end
        rows = tl.load(order + places, mask=real, other=0)
        here = (places - first).to(tl.int64)
        a_rows = rows if a_ordered else here
        n = ((tile // row_tiles) * column_block + tl.arange(0, column_block)).to(tl.int64)
        found = tl.zeros((row_block, column_block), tl.float32)
        for start in range(0, depth, depth_block):
            d = start + tl.arange(0, depth_block)
            mask = real[:, None] & (d < depth)[None, :]
            x = tl.load(a + a_rows[:, None] * a_stride + d[None, :], mask=mask, other=0.0)
            mask = (d < depth)[:, None] & (n < columns)[None, :]
            y = tl.load(
                b + d.to(tl.int64)[:, None] * b_stride_depth + n[None, :] * b_stride_column, mask=mask, other=0.0
            )
            found += _product(x, y)
        written = real
        if leaves:
            written = real & (tl.load(leave + rows, mask=real, other=1) == 0)
        out_rows = rows if out_ordered else here
        place = out + out_rows[:, None] * out_stride + n[None, :]
        tl.store(place, found.to(out.dtype.element_ty), mask=written[:, None] & (n < columns)[None, :])


@triton.jit(do_not_specialize=["first", "last"])
def _sum_kernel(
    out, a, b, order, count, first, last, rows_of_out, columns, out_stride, a_stride, b_stride,
    a_ordered: tl.constexpr,
    row_block: tl.constexpr, column_block: tl.constexpr, depth_block: tl.constexpr,
):  # fmt: skip
    end = tl.minimum(tl.load(count).to(tl.int32), last)
    row_tiles = tl.cdiv(rows_of_out, row_block)
    tiles = tl.where(first < end, row_tiles * tl.cdiv(columns, column_block), 0)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        m = ((tile % row_tiles) * row_block + tl.arange(0, row_block)).to(tl.int64)
        n = ((tile // row_tiles) * column_block + tl.arange(0, column_block)).to(tl.int64)
        found = tl.zeros((row_block, column_block), tl.float32)
        for start in range(first, end, depth_block):
            places = start + tl.arange(0, depth_block)
            real = places < end
            rows = tl.load(order + places, mask=real, other=0)
            a_rows = rows if a_ordered else (places - first).to(tl.int64)
            mask = real[None, :] & (m < rows_of_out)[:, None]
            x = tl.load(a + a_rows[None, :] * a_stride + m[:, None], mask=mask, other=0.0)
            mask = real[:, None] & (n < columns)[None, :]
            y = tl.load(b + rows[:, None] * b_stride + n[None, :], mask=mask, other=0.0)
            found += _product(x, y)
        place = out + m[:, None] * out_stride + n[None, :]
        mask = (m < rows_of_out)[:, None] & (n < columns)[None, :]
        before = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        tl.store(place, (before + found).to(out.dtype.element_ty), mask=mask)


def write_products(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    order: Tensor,
    count: Tensor,
    first: int,
    last: int | None = None,
    a_ordered: bool = True,
    out_ordered: bool = True,
    leave: Tensor | None = None,
) -> None:
    """Write `a[row] @ b` to `out[row]` for the rows in the places `first` … min(count, last) of an order.

    Args:
        out: `[·, n]`, rows contiguous.
        a: `[·, k]`, rows contiguous.
        b: `[k, n]`, of the same dtype and any strides.
        order: int64 `[N]`, rows.
        count: int64 `[1]`, how many of them count.
        first, last: places; None: N.
        a_ordered: else the place `first` has row 0 of `a`, and so on.
        out_ordered: the same of `out`.
        leave: bool `[N]`, rows that are not written.
    """
    assert all(tensor.stride(1) == 1 for tensor in (out, a))
    with on_device_of(out):
        _rows_kernel[(PROGRAMS,)](
            out, a, b, order, count, order if leave is None else leave, first, len(order) if last is None else last,
            *reversed(b.shape), out.stride(0), a.stride(0), *b.stride(), a_ordered, out_ordered, leave is not None,
            **_TILE,
        )  # fmt: skip


def add_products(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    order: Tensor,
    count: Tensor,
    first: int,
    last: int | None = None,
    a_ordered: bool = True,
) -> None:
    """Add `a[rows].T @ b[rows]` to `out` for the rows in the places `first` … min(count, last) of an order.

    Args:
        out: `[m, n]`, rows contiguous; the sum is rounded to its dtype once.
        a: `[·, m]`, rows contiguous.
        b: `[·, n]`, of the same dtype, rows contiguous.
        order, count, first, last, a_ordered: see `write_products`.
    """
    assert all(tensor.stride(1) == 1 for tensor in (out, a, b))
    with on_device_of(out):
        _sum_kernel[(PROGRAMS,)](
            out, a, b, order, count, first, len(order) if last is None else last, *out.shape,
            out.stride(0), a.stride(0), b.stride(0), a_ordered, **_TILE,
        )  # fmt: skip
