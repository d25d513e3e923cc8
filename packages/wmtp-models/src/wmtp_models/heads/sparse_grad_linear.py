"""Linear layers whose backward skips rows that receive no gradient.

A token that a head was not selected to learn has a gradient of exactly 0 in all that follows the attention of that
head's own layer: in its MLP, its output and its query projection. Keys and values still matter to other tokens, so
there, as everywhere in the trunk, most rows are non-zero and the product is the dense one.

On an accelerator all rows are multiplied: how many of them are zero is known to the device alone, and a host that asks
for it in each layer costs more than the rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
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
        flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)  # [n, in], [n, out]
        sparse = False
        if not on_accelerator(grad):
            rows = (flat_grad != 0).any(dim=-1).nonzero().squeeze(-1)
            sparse = len(rows) < _WORTH_IT * len(flat_grad)
        if sparse:
            flat_x, flat_grad = flat_x[rows], flat_grad[rows]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            matrix = weight.to(x.dtype)
            product = flat_grad @ (matrix if ctx.out_first else matrix.T)
            grad_x = torch.zeros_like(x).flatten(0, -2).index_copy(0, rows, product) if sparse else product
            grad_x = grad_x.view_as(x)
        if ctx.needs_input_grad[1]:
            grad_weight = (flat_grad.T @ flat_x if ctx.out_first else flat_x.T @ flat_grad).to(weight.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            grad_bias = flat_grad.sum(dim=0).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias, None
