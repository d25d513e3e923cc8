"""Gradients of hidden states and unembedding, formed from some rows of logits at a time."""

import math

import torch
from torch import Tensor

from wmtp_core.losses.logits_chunk import LogitsChunk, on_accelerator

# A hinted gradient within a few roundings of the real one is the real one: the two are products in another order.
_TOLERANCE = 1e-6


class Gradients:
    """Gradients of the hidden states and of the weight, formed from some rows at a time."""

    def __init__(self, inputs: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> None:
        self.inputs, self.weight = inputs, weight
        rows_apart = torch.contiguous_format  # whatever the strides of the inputs: kernels count on it
        self.grad_hidden = torch.zeros_like(inputs, memory_format=rows_apart) if needed[0] else None
        self.grad_weight = (
            torch.zeros_like(weight, dtype=torch.float32, memory_format=rows_apart) if needed[1] else None
        )
        self.hinted = torch.zeros(len(inputs), device=inputs.device)  # [N], of the rows that are formed ahead

    def take_hint(self, rows: Tensor, hinted: Tensor) -> None:
        """Note the gradients float32 `[r]` that the losses of these rows will probably receive."""
        # What is not a number, or of a size that another factor would overflow, is no hint.
        self.hinted[rows] = hinted.where((hinted.abs() > 1e-25) & (hinted.abs() < 1e25), 0)

    def select_rows(self, rows: Tensor, share: float) -> Tensor:
        """Return which of the rows to form ahead, int64, ascending indices into `rows`; drop the hint of the others."""
        max_rows = min(len(rows), math.ceil(share * len(rows) + math.sqrt(len(rows)) / 2))  # a chunk's share varies so
        wanted = self.hinted[rows] != 0
        if on_accelerator(rows):
            kept = wanted.byte().argsort(descending=True, stable=True)[:max_rows].sort().values  # a fixed number
        else:
            kept = wanted.nonzero().squeeze(-1)[:max_rows]
        formed = self.hinted[rows[kept]]
        self.hinted[rows] = 0
        self.hinted[rows[kept]] = formed
        return kept

    def add(
        self,
        chunk: LogitsChunk,
        rows: Tensor,
        kept: Tensor | None,
        grad_losses: Tensor,
        hidden_too: bool | Tensor = True,
    ) -> None:
        """Add what gradients of some losses of a chunk give.

        Args:
            chunk: of logits.
            rows: int64 `[r]`, its rows.
            kept: which of them, as indices into `rows`; None: all.
            grad_losses: float32 `[N]`, the gradient of each loss.
            hidden_too: also write the hidden states' gradients; bool `[k]`: only those of some of the rows.
        """
        chosen = rows if kept is None else rows[kept]
        incoming = grad_losses[chosen]  # [k]
        whole = kept is None or len(kept) == len(rows)
        grad_logits = chunk.gradients(None if whole else kept, incoming)  # [k, V]
        if self.grad_hidden is not None and hidden_too is not False:
            product = grad_logits @ self.weight  # [k, D]
            if isinstance(hidden_too, Tensor):
                product = product.where(hidden_too[:, None], self.grad_hidden[chosen])
            self.grad_hidden[chosen] = product
        if self.grad_weight is not None:
            inputs = self.inputs[chosen].where(incoming[:, None] != 0, 0)  # [k, D]: 0 · NaN would be NaN
            if inputs.dtype == torch.float32:
                self.grad_weight.addmm_(grad_logits.T, inputs)
            elif multiplies_into_float32(inputs):
                torch.addmm(self.grad_weight, grad_logits.T, inputs, out_dtype=torch.float32, out=self.grad_weight)
            else:  # rounded before it is added
                self.grad_weight += grad_logits.T @ inputs

    def reconcile(self, grad: Tensor) -> Tensor:
        """Turn what was formed for the hint into what `grad` float32 `[N]` asks for; returns what is missing, `[N]`."""
        both = (self.hinted != 0) & (grad != 0)
        first = both.int().argmax(keepdim=True)  # [1]: an index of no dimension would be read on the host
        factor = (grad[first] / self.hinted[first]).where(both[first], 0)
        residual = grad - factor * self.hinted
        # A bad hint is not corrected but dropped: what is large and then taken away again leaves its rounding behind.
        factor = factor.where(residual.abs().sum() <= grad.abs().sum() / 2, 0)
        residual = grad - factor * self.hinted
        # Not `>`: a gradient that is not finite is missing, too.
        residual = residual.where(~(residual.abs() <= _TOLERANCE * grad.abs()), 0)
        if self.grad_hidden is not None:
            self.grad_hidden.mul_((grad / self.hinted).where(self.hinted != 0, 0).unsqueeze(-1))
        if self.grad_weight is not None:
            # In place: it is the largest tensor here.
            self.grad_weight.mul_(factor).masked_fill_(factor == 0, 0)
            return residual
        return residual.where(self.hinted == 0, 0)  # of what was formed the hidden states' part is right by now

    def grad_weight_as(self, dtype: torch.dtype) -> Tensor | None:
        """Return the weight's gradient in the weight's dtype; it was summed in float32."""
        return None if self.grad_weight is None else self.grad_weight.to(dtype)


def multiplies_into_float32(factor: Tensor) -> bool:
    """Return whether torch adds products of half precision to float32 unrounded: on CUDA, from torch 2.10 on."""
    return factor.is_cuda and torch.__version__ >= "2.10"  # a version, which compares as one
