"""Linear layers whose backward skips rows that receive no gradient.

A token that a head was not selected to learn has a gradient of exactly 0 in all that follows the attention of that
head's own layer: in its MLP, its output and its query projection. Keys and values still matter to other tokens, so
there, as everywhere in the trunk, most rows are non-zero and the product is the dense one.

How many rows are zero an accelerator alone knows, and a host that asked for it in each layer would wait. So with Triton
a fixed number of rows is multiplied there, those with a gradient first: the share that heads were told to `expect`, and
some more. Should there be more rows, kernels that look at their number themselves add the rest, so that gradients are
exact whatever was expected. Other accelerators multiply all rows.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor, library, nn
from transformers.pytorch_utils import Conv1D

from wmtp_core.losses.logits_chunk import has_triton, on_accelerator

# Gathering costs about as much as it saves when nearly all rows take part.
_WORTH_IT = 0.9
_MORE = 1 / 32
"""More rows than expected, of all: heads differ a little, and so do micro-batches."""
_MIXING = re.compile(r"attn|attention|mixer|mamba", re.IGNORECASE)
_OF_ONE_TOKEN = {"q_proj", "q_a_proj", "q_b_proj", "o_proj", "out_proj", "c_proj", "dense"}
"""In what mixes tokens, the layers whose gradient is the token's own; elsewhere all are. It decides the cost alone."""


def make_row_sparse(module: nn.Module) -> None:
    """Let every linear layer in `module` (nn.Linear, or GPT-2's Conv1D) skip rows without gradient; names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = RowSparseLinear
        elif type(part) is Conv1D:
            part.__class__ = RowSparseConv1D


def expect_rows(module: nn.Module, share: float) -> None:
    """Say about which share of a module's tokens will have a gradient at most, wherever that is the token's own."""
    for name, part in module.named_modules():
        inside, _, own = name.rpartition(".")
        if isinstance(part, RowSparseLinear | RowSparseConv1D) and (own in _OF_ONE_TOKEN or not _MIXING.search(inside)):
            part.share = share


class RowSparseLinear(nn.Linear):
    """`nn.Linear` with the same parameters, outputs and gradients."""

    share = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Return `[..., in]` to `[..., out]`."""
        return _row_sparse(input, self.weight, self.bias, True, self.share)


class RowSparseConv1D(Conv1D):
    """transformers' Conv1D, a linear layer whose weight is `[in, out]`, with the same outputs and gradients."""

    share = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., in]` to `[..., out]`."""
        return _row_sparse(x, self.weight, self.bias, False, self.share)


def _row_sparse(x: Tensor, weight: Tensor, bias: Tensor | None, out_first: bool, share: float) -> Tensor:
    """Return `x @ weight + bias` with weight `[in, out]`, or `[out, in]` if `out_first`."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        result: Tensor = _RowSparse.apply(x, weight, bias, out_first, share)
    return result


class _RowSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_first: bool, share: float) -> Tensor:
        # The parameter itself, and no view or copy of it: ZeRO-3 frees what it gathered until the backward.
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype, ctx.how = None if bias is None else bias.dtype, (out_first, share)
        matrix = weight.to(x.dtype)
        return nn.functional.linear(x, matrix if out_first else matrix.T, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        out_first, share = ctx.how
        # The compiler does not look into it: how many rows there are is known only when it runs.
        gradients = _compiled_gradients if torch.compiler.is_compiling() else _gradients
        grad_x, grad_weight, grad_bias = gradients(grad, x, weight, out_first, share, of_x, of_weight, of_bias)
        return (
            grad_x if of_x else None,
            grad_weight if of_weight else None,
            grad_bias.to(ctx.bias_dtype) if of_bias else None,
            None,
            None,
        )


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, out_first: bool, share: float, of_x: bool, of_weight: bool, of_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias; an empty tensor for what is not asked for."""
    flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)  # [n, in], [n, out]
    matrix = weight.to(x.dtype)
    matrix = matrix if out_first else matrix.T  # [out, in]
    rows, order, count = _rows_with_gradient(flat_grad, share)
    some_x, some_grad = (flat_x, flat_grad) if rows is None else (flat_x[rows], flat_grad[rows])
    grad_x, grad_weight, grad_bias = x.new_empty(0), weight.new_empty(0), grad.new_empty(0)
    if of_x:
        product = some_grad @ matrix
        grad_x = product if rows is None else torch.zeros_like(flat_x).index_copy_(0, rows, product)
    if of_weight:
        grad_weight = some_grad.T @ some_x if out_first else some_x.T @ some_grad
    if rows is not None and order is not None and count is not None:
        from wmtp_core.counted_products import add_products, write_products

        flat_x, flat_grad = flat_x.contiguous(), flat_grad.contiguous()
        if of_x:
            write_products(grad_x, flat_grad, matrix, order, count, len(rows))
        if of_weight:
            left, right = (flat_grad, flat_x) if out_first else (flat_x, flat_grad)
            add_products(grad_weight, left, right, order, count, len(rows))
    if of_bias:
        grad_bias = flat_grad.sum(dim=0)
    return grad_x.view_as(x) if of_x else grad_x, grad_weight.to(weight.dtype), grad_bias


def _rows_with_gradient(grad: Tensor, share: float) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return rows to multiply, int64 `[k]`, or None for all of them.

    On an accelerator there may be more: then also all rows in order, those with a gradient first, int64 `[n]`, and how
    many these are, int64 `[1]`.
    """
    if not on_accelerator(grad):
        rows = (grad != 0).any(dim=-1).nonzero().squeeze(-1)
        return (rows if len(rows) < _WORTH_IT * len(grad) else None), None, None
    most = math.ceil((share + _MORE) * len(grad))
    if most > _WORTH_IT * len(grad) or not has_triton(grad):
        return None, None, None
    counts = (grad != 0).any(dim=-1)
    order = counts.byte().argsort(descending=True, stable=True)
    return order[:most], order, counts.sum(dim=0, keepdim=True)


_compiled_gradients = library.custom_op("wmtp::row_sparse_gradients", _gradients, mutates_args=())


@_compiled_gradients.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, out_first: bool, share: float, of_x: bool, of_weight: bool, of_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if of_x else 0),
        weight.new_empty(weight.shape if of_weight else 0),
        grad.new_empty(grad.shape[-1] if of_bias else 0),
    )
