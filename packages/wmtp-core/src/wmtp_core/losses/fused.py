"""Per-token cross-entropy from hidden states, of which only the selected tokens pay for a gradient.

U is the cost of one product of all rows with the unembedding. The losses cost 1U. A row's gradient costs another 3U
shares if its logits are formed anew in the backward, and 2U shares if it is formed while they are at hand. Which rows
will receive a gradient is known only after all losses, but it can be *guessed*: the forward forms the gradients of the
rows that a guess keeps, and the backward compares what really arrives with what was guessed, up to one common factor,
and mends the difference. So the result is exact whatever the guess was, and a good guess makes it cheap: 3U for uniform
weights and about (1 + 2·s)U for a selected share s.

On an accelerator the forward never asks the device how many rows there are: every row of a chunk has its logits formed,
target or not, and a fixed number of them its gradient. The backward counts the rows that it has to mend, twice.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.logits_chunk import CompiledLogitsChunk, LogitsChunk, rows_per_chunk

# A guessed gradient within a few roundings of the real one is the real one: the two are products in another order.
_TOLERANCE = 1e-6


class WeightHint(Protocol):
    """Guesses head weights chunk by chunk, while the losses come in."""

    share: float
    """About the share of all predictions that it keeps at most: more of a chunk than that is not formed ahead."""

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Weights float32 `[c, H]` of the positions int64 `[c]` (in 0 … P−1), whose losses are ce float32 `[c, H]`.

        It is called once for every chunk of a forward; a chunk is strided, so that it samples the whole batch.
        """
        ...


@dataclass(frozen=True)
class GradientHint:
    """What gradient each loss will probably receive: `weights · per_head`, times a factor that nobody needs to know."""

    weights: WeightHint
    per_head: Tensor
    """float32 `[H]`, such as one over each head's number of targets."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, guess: GradientHint | None = None
) -> Tensor:
    """Per-token cross-entropy of `hidden @ weight.T` without ever holding more than a chunk of the logits.

    Rows whose incoming gradient is exactly 0 (tokens that were not selected) cost nothing in the backward.

    Args:
        hidden: `[N, D]` float32 or bfloat16; with a guess, N = P·H with the heads of a position side by side.
        weight: `[V, D]` of the same dtype, the unembedding.
        targets: int64 `[N]`.
        ignore_index: rows of this target cost nothing and have loss 0.
        guess: decides when gradients are formed, and never what they are.

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
    if guess is not None and len(hidden) % len(guess.per_head):
        raise UserError(
            f"the guess is for {len(guess.per_head)} heads, and {len(hidden)} rows are not a multiple of that"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    # float16 holds too little for gradients that are formed before their scale is known.
    if not torch.is_grad_enabled() or not len(hidden) or hidden.dtype == torch.float16:
        guess = None
    with torch.autocast(device, enabled=False):
        result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, guess)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, guess: GradientHint | None
    ) -> Tensor:
        valid = targets != ignore_index
        targets = targets.where(valid, 0)
        ce = hidden.new_zeros(len(hidden), dtype=torch.float32)
        formed = _Gradients(hidden, weight, targets, ctx.needs_input_grad) if guess is not None else None
        horizon = len(guess.per_head) if guess is not None else 1
        heads = torch.arange(horizon, device=hidden.device)
        count = len(hidden) // horizon
        chunks = max(1, min(count, -(-len(hidden) // rows_per_chunk(weight))))
        logits = _chunk_of_logits(weight, -(-count // chunks) * horizon)
        for i in range(chunks):
            positions = torch.arange(i, count, chunks, device=hidden.device)  # [c]
            chunk = (positions[:, None] * horizon + heads).flatten()  # [c·H]
            rows = chunk if _counting_waits(hidden) else chunk[valid[chunk]]  # [r]
            ce[rows] = logits.losses(hidden[rows], targets[rows]).where(valid[rows], 0)
            if guess is not None and formed is not None:
                weights = guess.weights(positions, ce.view(-1, horizon)[positions])  # [c, H]
                # A loss that is not finite is left to the backward: if it is not selected, it must not spoil the rest.
                sound = valid[chunk] & ce[chunk].isfinite()
                formed.guess(chunk, (weights * guess.per_head).flatten().where(sound, 0))
                formed.add(logits, rows, formed.worth_forming(rows, guess.weights.share), formed.guessed)
        ctx.save_for_backward(hidden, weight, targets, valid)
        ctx.formed = formed
        return ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ce: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, valid = ctx.saved_tensors
        grad = grad_ce.where(valid, 0)
        # What was formed ahead is spent by the first backward; one more over a retained graph forms everything anew.
        if ctx.formed is not None:
            gradients, ctx.formed = ctx.formed, None
            grad = gradients.take_for(grad)
        else:
            gradients = _Gradients(hidden, weight, targets, ctx.needs_input_grad)
        most = min(rows_per_chunk(weight), max(1, len(hidden)))
        logits = _chunk_of_logits(weight, most)
        guessed = gradients.guessed != 0
        # A row that was guessed lacks only a part of the weight's gradient; one that was not lacks everything.
        for lacking, hidden_too in (((grad != 0) & guessed), False), (((grad != 0) & ~guessed), True):
            for rows in lacking.nonzero().squeeze(-1).split(most):
                if len(rows):
                    logits.losses(hidden[rows], targets[rows])
                    gradients.add(logits, rows, None, grad, hidden_too)
        return gradients.hidden, gradients.weight_as(weight.dtype), None, None, None


class _Gradients:
    """Gradients of the hidden states and of the weight, formed from some rows at a time."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, needed: tuple[bool, ...]) -> None:
        self.hidden_states, self.targets = hidden, targets
        self.hidden = torch.zeros_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.guessed = torch.zeros(len(hidden), device=hidden.device)

    def guess(self, rows: Tensor, guessed: Tensor) -> None:
        """Note the gradients float32 `[r]` that the losses of these rows will probably receive."""
        # What is not a number, or of a size that another factor would overflow, is no guess.
        self.guessed[rows] = guessed.where((guessed.abs() > 1e-25) & (guessed.abs() < 1e25), 0)

    def worth_forming(self, rows: Tensor, share: float) -> Tensor:
        """Which of the rows to form ahead: int64, ascending indices into `rows`; the guess of the others is dropped."""
        most = min(len(rows), math.ceil(share * len(rows) + math.sqrt(len(rows)) / 2))  # a chunk's share varies so much
        wanted = self.guessed[rows] != 0
        if _counting_waits(rows):
            kept = wanted.byte().argsort(descending=True, stable=True)[:most].sort().values  # a fixed number
        else:
            kept = wanted.nonzero().squeeze(-1)[:most]
        formed = self.guessed[rows[kept]]
        self.guessed[rows] = 0
        self.guessed[rows[kept]] = formed
        return kept

    def add(
        self, logits: LogitsChunk, rows: Tensor, kept: Tensor | None, amounts: Tensor, hidden_too: bool = True
    ) -> None:
        """Add what arrives at some losses of the chunk that `logits` holds.

        Args:
            rows: int64 `[r]`, the rows of that chunk.
            kept: which of them, as indices into `rows`; None: all.
            amounts: float32 `[N]`, what arrives at each loss.
        """
        chosen = rows if kept is None else rows[kept]
        arriving = amounts[chosen]  # [k]
        whole = kept is None or len(kept) == len(rows)
        product = logits.gradients(None if whole else kept, self.targets[chosen], arriving)  # [k, V]
        if self.hidden is not None and hidden_too:
            self.hidden[chosen] = product @ logits.weight
        if self.weight is not None:
            picked = self.hidden_states[chosen].where(arriving[:, None] != 0, 0)  # [k, D]: 0 · NaN would be NaN
            if picked.dtype == torch.float32:
                self.weight.addmm_(product.T, picked)
            else:
                self.weight += product.T @ picked

    def take_for(self, grad: Tensor) -> Tensor:
        """Turn what was formed for the guess into what `grad` float32 `[N]` asks for; returns what lacks, `[N]`."""
        both = (self.guessed != 0) & (grad != 0)
        first = both.int().argmax(keepdim=True)  # [1]: an index of no dimension would be read on the host
        factor = (grad[first] / self.guessed[first]).where(both[first], 0)
        residual = grad - factor * self.guessed
        # A bad guess is not mended but dropped: what is large and then taken away again leaves its rounding behind.
        factor = factor.where(residual.abs().sum() <= grad.abs().sum() / 2, 0)
        residual = grad - factor * self.guessed
        # Not `>`: a gradient that is not finite lacks, too.
        residual = residual.where(~(residual.abs() <= _TOLERANCE * grad.abs()), 0)
        if self.hidden is not None:
            self.hidden.mul_((grad / self.guessed).where(self.guessed != 0, 0).unsqueeze(-1))
        if self.weight is not None:
            self.weight.mul_(factor).masked_fill_(factor == 0, 0)  # in place: it is the largest tensor here
        return residual

    def weight_as(self, dtype: torch.dtype) -> Tensor | None:
        """The weight's gradient in the weight's dtype; it was summed in float32."""
        return None if self.weight is None else self.weight.to(dtype)


def _counting_waits(tensor: Tensor) -> bool:
    """Whether the host has to wait for a device to learn how many rows there are."""
    return tensor.device.type != "cpu"


def _chunk_of_logits(weight: Tensor, rows: int) -> LogitsChunk:
    return (CompiledLogitsChunk if _counting_waits(weight) else LogitsChunk)(weight, rows)
