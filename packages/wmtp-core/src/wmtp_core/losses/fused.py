"""Per-token cross-entropy from hidden states, of which only the selected tokens pay for a gradient.

What costs is products with the unembedding. Call the product of all rows 1U. The losses cost 1U. The gradient of a
row costs its share of 2U (one product for the hidden state, one for the weight) if it is formed in the forward, while
the row's logits are at hand, and of 3U in the backward, where the logits have to be formed anew.

Which rows will receive a gradient is known only after all losses, but a *hint* can say it before: the forward forms
the gradients of the rows that the hint keeps, and the backward compares the gradient that really arrives with the
hinted one, up to one common factor, and corrects the difference. So the result is exact whatever the hint was, and a
good hint makes it cheap: uniform weights cost 3U with a hint and 4U without, and a selected share s about (1 + 2·s)U.

On an accelerator nobody asks the device how many rows there are, for which the host would wait: every row of a chunk
has its logits formed, target or not, and a fixed number of them its gradient. The backward corrects a fixed number of
rows, the share that the hint is known to get wrong at most; should there be more, kernels that look at the number
themselves add the rest (`remaining_rows`). Where there is no Triton, the host waits once for that number.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.distillation import RUN, Distillation, distilled_logits
from wmtp_core.losses.gradients import Gradients
from wmtp_core.losses.hints import GradientHint
from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform
from wmtp_core.losses.logits_chunk import ChunkedLogits, chunked_logits, on_accelerator, rows_per_chunk


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    hint: GradientHint | None = None,
    transform: LogitTransform = IDENTITY,
) -> Tensor:
    """Return the per-token cross-entropy of `hidden @ weight.T` without ever holding more than a chunk of the logits.

    Rows whose incoming gradient is exactly 0 (tokens that were not selected) cost nothing in the backward; on an
    accelerator, where it does not know them, a backward without a hint forms all rows.

    Args:
        hidden: `[N, D]` float32 or bfloat16; with a hint, N = P·H with the heads of a position side by side.
        weight: `[V, D]` of the same dtype, the unembedding.
        targets: int64 `[N]`.
        ignore_index: rows of this target have loss 0, and cost nothing on a CPU.
        hint: decides when gradients are formed, and never what they are.
        transform: from that product to the logits, computed in float32.

    Returns:
        float32 `[N]`, differentiable once in `hidden` and `weight`.

    Raises:
        UserError: shapes that do not fit.
    """
    return _losses(hidden, weight, targets, ignore_index, hint, transform, None)[0]


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distillation: Distillation,
    ignore_index: int = -100,
    hint: GradientHint | None = None,
    transform: LogitTransform = IDENTITY,
) -> tuple[Tensor, Tensor]:
    """Return how far later heads are from head 0's own distribution, as `linear_cross_entropy` does its losses.

    Head h at position t learns from head 0 at t+h, where both predict token t+h+1. The logits of neither are ever held
    for more than a chunk.

    Args:
        hidden: `[N, D]` of heads 1 … L at P positions, N = P·L, the heads of a position side by side.
        weight: `[V, D]`, the unembedding of teacher and heads; the teacher's part of it gets no gradient.
        targets: int64 `[N]`; rows of `ignore_index` have loss 0.
        distillation: the teacher's hidden states `[P, D]`, and how distributions are compared.
        ignore_index, hint, transform: see `linear_cross_entropy`; weights of a hint look at cross-entropies.

    Returns:
        losses float32 `[N]`, differentiable once in `hidden` and `weight`; and cross-entropies float32 `[N]` without
        gradient.

    Raises:
        UserError: shapes that do not fit.
    """
    teacher = distillation.teacher
    if teacher.ndim != 2 or teacher.shape[1:] != hidden.shape[1:] or not len(teacher) or len(hidden) % len(teacher):
        raise UserError(
            f"the teacher's states are {list(teacher.shape)} and the heads' {list(hidden.shape)}: give [P, D] and "
            "[P·heads, D]"
        )
    losses, ce = _losses(hidden, weight, targets, ignore_index, hint, transform, distillation)
    assert ce is not None
    return losses, ce


def _losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    hint: GradientHint | None,
    transform: LogitTransform,
    distillation: Distillation | None,
) -> tuple[Tensor, Tensor | None]:
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
    if distillation is not None:
        distillation = replace(distillation, teacher=distillation.teacher.detach().to(weight.dtype))
    # float16 holds too little for gradients that are formed before their scale is known.
    if not torch.is_grad_enabled() or not len(hidden) or hidden.dtype == torch.float16:
        hint = None
    with torch.autocast(device, enabled=False):
        losses, ce = _LinearLoss.apply(hidden, weight, targets, ignore_index, hint, transform, distillation)
    return losses, ce


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        hint: GradientHint | None,
        transform: LogitTransform,
        distillation: Distillation | None,
    ) -> tuple[Tensor, Tensor | None]:
        valid = targets != ignore_index
        targets = targets.where(valid, 0)
        losses = hidden.new_zeros(len(hidden), dtype=torch.float32)
        ce = losses if distillation is None else torch.zeros_like(losses)
        formed = Gradients(hidden, weight, ctx.needs_input_grad) if hint is not None else None
        horizon = len(hint.per_head) if hint is not None else 1
        run = 1
        if distillation is not None:
            horizon, run = len(hidden) // len(distillation.teacher), RUN
        heads = torch.arange(horizon, device=hidden.device)
        count = len(hidden) // horizon
        chunks = max(1, min(-(-count // run), -(-len(hidden) // _rows_per_chunk(weight, distillation))))
        most = -(-count // (chunks * run)) * run * horizon
        logits = _chunked_logits(weight, most, transform, distillation)
        for i in range(chunks):
            positions = _positions(i, chunks, count, run, hidden.device)  # [c]
            in_chunk = (positions[:, None] * horizon + heads).flatten()  # [c·H]
            rows = in_chunk if on_accelerator(hidden) else in_chunk[valid[in_chunk]]  # [r]
            chunk = logits.form_rows(rows, hidden, targets, run)
            losses[rows] = chunk.losses.where(valid[rows], 0)
            if distillation is not None:
                ce[rows] = chunk.ce.where(valid[rows], 0)
            if hint is not None and formed is not None:
                weights = hint.weights(positions, ce.view(-1, horizon)[positions])  # [c, H]
                # A loss that is not finite is left to the backward: if it is not selected, it must not spoil the rest.
                finite = valid[in_chunk] & losses[in_chunk].isfinite()
                formed.take_hint(in_chunk, (weights * hint.per_head).flatten().where(finite, 0))
                formed.add(chunk, rows, formed.select_rows(rows, hint.weights.share), formed.hinted)
        ctx.save_for_backward(hidden, weight, targets, valid)
        ctx.formed, ctx.transform, ctx.distillation = formed, transform, distillation
        ctx.wrong = 1.0 if hint is None else hint.weights.wrong
        if distillation is None:
            return losses, None
        ctx.mark_non_differentiable(ce)
        return losses, ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, valid = ctx.saved_tensors
        grad = grad_losses.where(valid, 0)
        # What was formed ahead is spent by the first backward; one more over a retained graph forms everything anew.
        wrong = 1.0
        if ctx.formed is not None:
            gradients, ctx.formed, wrong = ctx.formed, None, ctx.wrong
            grad = gradients.reconcile(grad)
        else:
            gradients = Gradients(hidden, weight, ctx.needs_input_grad)
        most = min(_rows_per_chunk(weight, ctx.distillation), max(1, len(hidden)))
        logits = _chunked_logits(weight, most, ctx.transform, ctx.distillation)
        if on_accelerator(hidden):
            _add_without_counting(gradients, logits, grad, targets, math.ceil(wrong * len(hidden)))
        else:
            _add_counted(gradients, logits, grad, targets)
        return gradients.grad_hidden, gradients.grad_weight_as(weight.dtype), None, None, None, None, None


def _positions(i: int, chunks: int, count: int, run: int, device: torch.device) -> Tensor:
    """Return the positions of chunk i, int64 `[c]`: every `chunks`-th run, so that a chunk samples the whole batch."""
    starts = torch.arange(i * run, count, chunks * run, device=device)
    beyond = max(0, (i + (len(starts) - 1) * chunks + 1) * run - count)  # of the last run, beyond the last position
    positions = (starts[:, None] + torch.arange(run, device=device)).flatten()
    return positions[: len(positions) - beyond]


def _rows_per_chunk(weight: Tensor, distillation: Distillation | None) -> int:
    rows = rows_per_chunk(weight)
    return rows if distillation is None else max(1, rows * 3 // 4)  # for the teacher's logits lie there, too


def _chunked_logits(
    weight: Tensor, rows: int, transform: LogitTransform, distillation: Distillation | None
) -> ChunkedLogits:
    if distillation is None:
        return chunked_logits(weight, rows, transform)
    return distilled_logits(weight, rows, transform, distillation)


def _add_counted(gradients: Gradients, logits: ChunkedLogits, missing: Tensor, targets: Tensor) -> None:
    """Add what is missing, float32 `[N]`, of exactly the rows of which something is."""
    hinted = gradients.hinted != 0
    # A row that was hinted lacks only a part of the weight's gradient; one that was not lacks everything.
    for of, hidden_too in (((missing != 0) & hinted), False), (((missing != 0) & ~hinted), True):
        for rows in of.nonzero().squeeze(-1).split(logits.rows):
            if len(rows):
                gradients.add(logits.form_rows(rows, gradients.inputs, targets), rows, None, missing, hidden_too)


def _add_without_counting(
    gradients: Gradients, logits: ChunkedLogits, missing: Tensor, targets: Tensor, budget: int
) -> None:
    """Add what is missing, float32 `[N]`, in a fixed number of rows, and then whatever there is beyond these."""
    not_hinted = gradients.hinted == 0
    order = (missing != 0).byte().argsort(descending=True, stable=True)  # [N], those that lack something first
    for rows in order[:budget].split(logits.rows) if budget else ():
        chunk = logits.form_rows(rows, gradients.inputs, targets)
        gradients.add(chunk, rows, None, missing, not_hinted[rows])
    if budget < len(order):
        logits.add_beyond(gradients, missing, targets, order, budget)
