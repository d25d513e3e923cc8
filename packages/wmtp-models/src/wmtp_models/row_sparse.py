"""Linear layers whose backward skips rows that receive no gradient.

A token that a head was not selected to learn has a gradient of exactly 0 in all that follows the attention of that
head's own layer: in its MLP, its output and its query projection. Keys and values still matter to other tokens, so
there, as everywhere in the trunk, most rows are non-zero and the product is the dense one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
        """`[..., in]` to `[..., out]`."""
        return _row_sparse(input, self.weight.T, self.bias)


class RowSparseConv1D(Conv1D):
    """transformers' Conv1D, a linear layer whose weight is `[in, out]`, with the same outputs and gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return _row_sparse(x, self.weight, self.bias)


def _row_sparse(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight + bias` with weight `[in, out]`."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        result: Tensor = _RowSparse.apply(x, weight, bias)
    return result


class _RowSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return nn.functional.linear(x, weight.T, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)  # [n, in], [n, out]
        rows = (flat_grad != 0).any(dim=-1).nonzero().squeeze(-1)
        sparse = len(rows) < _WORTH_IT * len(flat_grad)
        if sparse:
            flat_x, flat_grad = flat_x[rows], flat_grad[rows]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            product = flat_grad @ weight.T
            grad_x = torch.zeros_like(x).flatten(0, -2).index_copy(0, rows, product) if sparse else product
            grad_x = grad_x.view_as(x)
        if ctx.needs_input_grad[1]:
            grad_weight = flat_x.T @ flat_grad
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = flat_grad.sum(dim=0)
        return grad_x, grad_weight, grad_bias
