"""Per-token cross-entropy from hidden states, of which only the selected tokens pay for a gradient.

What costs is products with the unembedding. Call the product of all rows 1U. The losses cost 1U. The gradient of a
row costs its share of 2U (one product for the hidden state, one for the weight) if it is formed in the forward, while
the row's logits are at hand, and of 3U in the backward, where the logits have to be formed anew.

Which rows will receive a gradient is known only after all losses, but a *hint* can say it before: the forward forms
the gradients of the rows that the hint keeps, and the backward compares the gradient that really arrives with the
hinted one, up to one common factor, and corrects the difference. So the result is exact whatever the hint was, and a
good hint makes it cheap: uniform weights cost 3U with a hint and 4U without, and a selected share s about (1 + 2·s)U.

On an accelerator the forward never asks the device how many rows there are: every row of a chunk has its logits formed,
target or not, and a fixed number of them its gradient. The backward counts the rows that it has to correct, twice.
"""

import math
from typing import Any

import torch
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.hints import GradientHint
from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform
from wmtp_core.losses.logits_chunk import LogitsChunk, chunked_logits, on_accelerator, rows_per_chunk

# A hinted gradient within a few roundings of the real one is the real one: the two are products in another order.
_TOLERANCE = 1e-6


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    hint: GradientHint | None = None,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """Return the per-token cross-entropy of `hidden @ weight.T` without ever holding more than a chunk of the logits.

    Rows whose incoming gradient is exactly 0 (tokens that were not selected) cost nothing in the backward.

    Args:
        hidden: `[N, D]` float32 or bfloat16; with a hint, N = P·H with the heads of a position side by side.
        weight: `[V, D]` of the same dtype, the unembedding.
        targets: int64 `[N]`.
        ignore_index: rows of this target cost nothing and have loss 0.
        hint: decides when gradients are formed, and never what they are.
        transform: from that product to the logits, computed in float32.

    Returns:
        float32 `[N]`, differentiable once in `hidden` and `weight`.

    Raises:
        UserError: shapes that do not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise UserError(
            f"hidden {list(hidden.shape)}, weight {list(weight.shape)} and targets {list(targets.shape)} do not fit: "
            "give [N, D], [V, D] and [N]"
        )
    if hint is not None and len(hidden) % len(hint.per_head):
        raise UserError(
            f"the hint is for {len(hint.per_head)} heads, and {len(hidden)} rows are not a multiple of that"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    # float16 holds too little for gradients that are formed before their scale is known.
    if not torch.is_grad_enabled() or not len(hidden) or hidden.dtype == torch.float16:
        hint = None
    with torch.autocast(device, enabled=False):
        result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, hint, transform)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        hint: GradientHint | None,
        transform: LogitTransform,
    ) -> Tensor:
        valid = targets != ignore_index
        targets = targets.where(valid, 0)
        ce = hidden.new_zeros(len(hidden), dtype=torch.float32)
        formed = _Gradients(hidden, weight, ctx.needs_input_grad) if hint is not None else None
        horizon = len(hint.per_head) if hint is not None else 1
        heads = torch.arange(horizon, device=hidden.device)
        count = len(hidden) // horizon
        chunks = max(1, min(count, -(-len(hidden) // rows_per_chunk(weight))))
        logits = chunked_logits(weight, -(-count // chunks) * horizon, transform)
        for i in range(chunks):
            positions = torch.arange(i, count, chunks, device=hidden.device)  # [c]
            in_chunk = (positions[:, None] * horizon + heads).flatten()  # [c·H]
            rows = in_chunk if on_accelerator(hidden) else in_chunk[valid[in_chunk]]  # [r]
            chunk = logits.form(hidden[rows], targets[rows])
            ce[rows] = chunk.losses.where(valid[rows], 0)
            if hint is not None and formed is not None:
                weights = hint.weights(positions, ce.view(-1, horizon)[positions])  # [c, H]
                # A loss that is not finite is left to the backward: if it is not selected, it must not spoil the rest.
                finite = valid[in_chunk] & ce[in_chunk].isfinite()
                formed.take_hint(in_chunk, (weights * hint.per_head).flatten().where(finite, 0))
                formed.add(chunk, rows, formed.select_rows(rows, hint.weights.share), formed.hinted)
        ctx.save_for_backward(hidden, weight, targets, valid)
        ctx.formed, ctx.transform = formed, transform
        return ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ce: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, targets, valid = ctx.saved_tensors
        grad = grad_ce.where(valid, 0)
        # What was formed ahead is spent by the first backward; one more over a retained graph forms everything anew.
        if ctx.formed is not None:
            gradients, ctx.formed = ctx.formed, None
            grad = gradients.reconcile(grad)
        else:
            gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        max_rows = min(rows_per_chunk(weight), max(1, len(hidden)))
        logits = chunked_logits(weight, max_rows, ctx.transform)
        hinted = gradients.hinted != 0
        # A row that was hinted lacks only a part of the weight's gradient; one that was not lacks everything.
        for missing, hidden_too in (((grad != 0) & hinted), False), (((grad != 0) & ~hinted), True):
            for rows in missing.nonzero().squeeze(-1).split(max_rows):
                if len(rows):
                    gradients.add(logits.form(hidden[rows], targets[rows]), rows, None, grad, hidden_too)
        return gradients.grad_hidden, gradients.grad_weight_as(weight.dtype), None, None, None, None


class _Gradients:
    """Gradients of the hidden states and of the weight, formed from some rows at a time."""

    def __init__(self, inputs: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> None:
        self.inputs, self.weight = inputs, weight
        self.grad_hidden = torch.zeros_like(inputs) if needed[0] else None
        self.grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
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
        self, chunk: LogitsChunk, rows: Tensor, kept: Tensor | None, grad_losses: Tensor, hidden_too: bool = True
    ) -> None:
        """Add what gradients of some losses of a chunk give.

        Args:
            chunk: of logits.
            rows: int64 `[r]`, its rows.
            kept: which of them, as indices into `rows`; None: all.
            grad_losses: float32 `[N]`, the gradient of each loss.
            hidden_too: also write the hidden states' gradients.
        """
        chosen = rows if kept is None else rows[kept]
        incoming = grad_losses[chosen]  # [k]
        whole = kept is None or len(kept) == len(rows)
        grad_logits = chunk.gradients(None if whole else kept, incoming)  # [k, V]
        if self.grad_hidden is not None and hidden_too:
            self.grad_hidden[chosen] = grad_logits @ self.weight
        if self.grad_weight is not None:
            inputs = self.inputs[chosen].where(incoming[:, None] != 0, 0)  # [k, D]: 0 · NaN would be NaN
            if inputs.dtype == torch.float32:
                self.grad_weight.addmm_(grad_logits.T, inputs)
            else:
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

    def grad_weight_as(self, dtype: torch.dtype) -> Tensor | None:
        """Return the weight's gradient in the weight's dtype; it was summed in float32."""
        return None if self.grad_weight is None else self.grad_weight.to(dtype)
