"""Per-token cross-entropy: dense from logits (the oracle) and fused from hidden states (what training calls)."""

from typing import Any

import torch
from torch import Tensor

from wmtp_core.errors import UserError

# One chunk of logits is all that is ever alive: 2^25 float32 are 128 MiB.
CHUNK_ELEMENTS = 2**25


def dense_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """−log softmax(logits)[target] in float32.

    Args:
        logits: float `[..., V]`.
        targets: int64 `[...]`.

    Returns:
        float32 `[...]`, 0 where the target is `ignore_index`.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(targets.shape)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Per-token cross-entropy of `hidden @ weight.T` without ever holding more than a chunk of the logits.

    The backward looks at the gradient that arrives: a row whose gradient is exactly 0 (a token that was not selected)
    is skipped, so selection saves work whatever rule made it.

    Args:
        hidden: `[N, D]` float32 or bfloat16.
        weight: `[V, D]` of the same dtype, the unembedding.
        targets: int64 `[N]`.
        ignore_index: rows of this target cost nothing and have loss 0.

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
    result: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        rows = (targets != ignore_index).nonzero().squeeze(-1)  # [n] the rows that have a target
        ce = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        for chunk in rows.split(_rows_per_chunk(weight)):
            ce[chunk] = _chunk_losses(hidden[chunk], weight, targets[chunk])
        ctx.save_for_backward(hidden, weight, targets)
        ctx.ignore_index = ignore_index
        return ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ce: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        rows = ((grad_ce != 0) & (targets != ctx.ignore_index)).nonzero().squeeze(-1)
        for chunk in rows.split(_rows_per_chunk(weight)):
            picked = hidden[chunk]  # [c, D]
            grad_logits = _chunk_gradients(picked, weight, targets[chunk], grad_ce[chunk])  # [c, V]
            if grad_hidden is not None:
                grad_hidden[chunk] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ picked
            del grad_logits  # or it would live on beside the next chunk's
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _chunk_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """float32 `[c]`."""
    return -_log_probabilities(hidden, weight).gather(1, targets[:, None]).squeeze(1)


def _chunk_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, grad_ce: Tensor) -> Tensor:
    """Gradient of the logits, `(softmax − onehot)·grad`, in the inputs' dtype, `[c, V]`."""
    gradients = _log_probabilities(hidden, weight).exp_()
    gradients[torch.arange(len(targets), device=targets.device), targets] -= 1
    return gradients.mul_(grad_ce[:, None]).to(hidden.dtype)


def _log_probabilities(hidden: Tensor, weight: Tensor) -> Tensor:
    """float32 `[c, V]`, by the same arithmetic as `torch.nn.functional.cross_entropy`, in the buffer of the logits."""
    logits = (hidden @ weight.T).float()
    return torch.log_softmax(logits, dim=-1, out=logits)


def _rows_per_chunk(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.shape[0])
