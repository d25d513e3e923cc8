"""A value head's estimates: what each token added, and what the value head learns from.

`V_t` estimates the reward of a document given its tokens up to t. Generalized advantage estimation is equation 16 of
Schulman et al., arXiv 1506.02438; the Bradley-Terry ranking loss is equation 1 of Ouyang et al., arXiv 2203.02155.
Everything stays within a packed document: values of one never reach into another.
"""

import torch
from torch import Tensor


def value_differences(values: Tensor, discount: float, document_ids: Tensor | None = None) -> Tensor:
    """Return what token t added: `δ_t = V_t − discount·V_{t−1}`, with `V = 0` before a document's first token.

    Args:
        values: float32 `[B, S]`.
        discount: in [0, 1].
        document_ids: int64 `[B, S]`, equal within a document; None: each row is one.

    Returns:
        float32 `[B, S]`.
    """
    previous = torch.nn.functional.pad(values[:, :-1], (1, 0))
    if document_ids is not None:
        previous = previous.where(~document_starts(document_ids), 0)
    return values - discount * previous


def generalized_advantages(
    differences: Tensor, discount: float, gae_lambda: float, document_ids: Tensor | None = None
) -> Tensor:
    """Return `A_t = Σ_l (discount·λ)^l δ_{t+l}` over the rest of the document. float32 `[B, S]` in and out."""
    decay = torch.full_like(differences, discount * gae_lambda).where(~_ends(differences, document_ids), 0)
    return _sum_from_the_right(differences, decay)


def lambda_return_losses(
    values: Tensor, rewards: Tensor, return_lambda: float, document_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of the values to their λ-returns, whose end is the document's reward.

    `G_t = (1−λ)·V_{t+1} + λ·G_{t+1}`, and `G = reward` at the last token; undiscounted, so that V estimates the reward.

    Args:
        values: float32 `[B, S]`.
        rewards: float32 `[B, S]`, the document's reward at each of its tokens, NaN where unknown.
        return_lambda: λ in [0, 1]; 1 regresses every token on the reward itself.
        document_ids: int64 `[B, S]`.

    Returns:
        losses float32 `[B, S]` (0 where the reward is unknown) and the bool mask `[B, S]` of where it is known.
    """
    known = ~rewards.isnan()
    targets = values.detach()
    ends = _ends(targets, document_ids)
    following = torch.nn.functional.pad(targets[:, 1:], (0, 1))
    constants = torch.where(ends, rewards.nan_to_num(), (1 - return_lambda) * following)
    returns = _sum_from_the_right(constants, torch.full_like(targets, return_lambda).where(~ends, 0))
    return (values - returns).square().where(known, 0), known


def ranking_losses(values: Tensor, pairs: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return `−log σ(V_chosen − V_rejected)` at the last tokens of a pair of documents that stand next to each other.

    Args:
        values: float32 `[B, S]`.
        pairs: int64 `[B, S]`, p ≥ 1 on every token of the chosen text of pair p, −p on the rejected one, else 0.
        document_ids: int64 `[B, S]`.

    Returns:
        losses float32 `[B, S]`, non-zero at a rejected text's last token only, and the bool mask of those `[B, S]`.
    """
    positions = torch.arange(values.shape[1], device=values.device).expand_as(pairs)
    start = torch.where(document_starts(document_ids), positions, 0).cummax(dim=1).values
    before = start - 1  # the last token of the document before this one
    chosen_end = before.clamp(min=0)
    mask = document_ends(document_ids) & (pairs < 0)
    mask &= pairs.gather(1, chosen_end) == -pairs
    margins = values.gather(1, chosen_end) - values
    return torch.nn.functional.softplus(-margins).where(mask, 0), mask


def document_starts(document_ids: Tensor) -> Tensor:
    """Return bool `[B, S]`: where a packed document (or the rest of one) begins."""
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return starts


def document_ends(document_ids: Tensor) -> Tensor:
    """Return bool `[B, S]`: where a packed document (or what the row holds of it) ends."""
    ends = torch.ones_like(document_ids, dtype=torch.bool)
    ends[:, :-1] = document_ids[:, 1:] != document_ids[:, :-1]
    return ends


def _ends(values: Tensor, document_ids: Tensor | None) -> Tensor:
    """Return what `document_ends` does; without ids each row of `values` is one document."""
    return document_ends(torch.zeros_like(values) if document_ids is None else document_ids)


def _sum_from_the_right(constants: Tensor, decay: Tensor) -> Tensor:
    """Return `x_t = constants_t + decay_t · x_{t+1}` along the last dimension, by doubling: log2(S) steps, not S."""
    step = 1
    while step < constants.shape[-1]:
        constants = constants + decay * torch.nn.functional.pad(constants[:, step:], (0, step))
        decay = decay * torch.nn.functional.pad(decay[:, step:], (0, step))
        step *= 2
    return constants
