"""Linear layers whose backward skips rows that receive no gradient.

A token that a head was not selected to learn has a gradient of exactly 0 in all that follows the attention of that
head's own layer: in its MLP, its output and its query projection. Keys and values still matter to other tokens, so
there, as everywhere in the trunk, most rows are non-zero and the product is the dense one.

On an accelerator all rows are multiplied: how many of them are zero is known to the device alone, and a host that asks
for it in each layer costs more than the rows.
"""

from typing import Any

import torch
from torch import Tensor, library, nn
from transformers.pytorch_utils import Conv1D

from wmtp_core.losses.logits_chunk import on_accelerator

# Gathering costs about as much as it saves when nearly all rows take part.
_WORTH_IT = 0.9


def make_row_sparse(module: nn.Module) -> None:
    """Let every linear layer in `module` (nn.Linear, or GPT-2's Conv1D) skip rows without gradient; names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = RowSparseLinear
        elif type(part) is Conv1D:
            part.__class__ = RowSparseConv1D


class RowSparseLinear(nn.Linear):
    """`nn.Linear` with the same parameters, outputs and gradients."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `[..., in]` to `[..., out]`."""
        return _row_sparse(input, self.weight, self.bias, out_first=True)


class RowSparseConv1D(Conv1D):
    """transformers' Conv1D, a linear layer whose weight is `[in, out]`, with the same outputs and gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., in]` to `[..., out]`."""
        return _row_sparse(x, self.weight, self.bias, out_first=False)


def _row_sparse(x: Tensor, weight: Tensor, bias: Tensor | None, out_first: bool) -> Tensor:
    """Return `x @ weight + bias` with weight `[in, out]`, or `[out, in]` if `out_first`."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        result: Tensor = _RowSparse.apply(x, weight, bias, out_first)
    return result


class _RowSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out_first: bool) -> Tensor:
        # The parameter itself, and no view or copy of it: ZeRO-3 frees what it gathered until the backward.
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype, ctx.out_first = None if bias is None else bias.dtype, out_first
        matrix = weight.to(x.dtype)
        return nn.functional.linear(x, matrix if out_first else matrix.T, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        # The compiler does not look into it: how many rows there are is known only when it runs.
        gradients = _compiled_gradients if torch.compiler.is_compiling() else _gradients
        grad_x, grad_weight, grad_bias = gradients(grad, x, weight, ctx.out_first, of_x, of_weight, of_bias)
        return (
            grad_x if of_x else None,
            grad_weight if of_weight else None,
            grad_bias.to(ctx.bias_dtype) if of_bias else None,
            None,
        )


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, out_first: bool, of_x: bool, of_weight: bool, of_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias; an empty tensor for what is not asked for."""
    flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)  # [n, in], [n, out]
    sparse = False
    if not on_accelerator(grad):
        rows = (flat_grad != 0).any(dim=-1).nonzero().squeeze(-1)
        sparse = len(rows) < _WORTH_IT * len(flat_grad)
    if sparse:
        flat_x, flat_grad = flat_x[rows], flat_grad[rows]
    grad_x, grad_weight, grad_bias = x.new_empty(0), weight.new_empty(0), grad.new_empty(0)
    if of_x:
        matrix = weight.to(x.dtype)
        product = flat_grad @ (matrix if out_first else matrix.T)
        grad_x = torch.zeros_like(x).flatten(0, -2).index_copy(0, rows, product) if sparse else product
        grad_x = grad_x.view_as(x)
    if of_weight:
        grad_weight = (flat_grad.T @ flat_x if out_first else flat_x.T @ flat_grad).to(weight.dtype)
    if of_bias:
        grad_bias = flat_grad.sum(dim=0)
    return grad_x, grad_weight, grad_bias


_compiled_gradients = library.custom_op("wmtp::row_sparse_gradients", _gradients, mutates_args=())


@_compiled_gradients.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, out_first: bool, of_x: bool, of_weight: bool, of_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if of_x else 0),
        weight.new_empty(weight.shape if of_weight else 0),
        grad.new_empty(grad.shape[-1] if of_bias else 0),
    )
