"""Held-out figures: each head's losses and predictions, and how well selection and values tell good text from bad."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from wmtp_core import accepted_drafts, excess_loss, shift_to_heads
from wmtp_core.advantages import document_ends
from wmtp_train.data.batch import Batch
from wmtp_train.metrics.accumulator import noise_figures
from wmtp_train.ranks.collective import all_gather_object
from wmtp_train.step import Objective


@torch.no_grad()
def evaluate(objective: Objective, batches: Iterable[Batch], step: int, kinds: list[str]) -> dict[str, float]:
    """Figures over all ranks on one held-out set. Every rank must call it with as many batches.

    Args:
        objective: the policy, and the weighting whose selection is held against the noise labels.
        step: for weightings that depend on it.
        kinds: names of the kinds of noise 1, 2, …

    Returns:
        `ce/head_{h}` in nats per token; `accuracy/head_{h}`, how often its most probable token is the text's; for
        heads ≥ 1 `acceptance/head_{h}`, how often a decoder would keep its draft (`wmtp_core.accepted_drafts`), over its
        targets like the others, and `tokens_per_forward`, 1 and the sum of these. With noise labels
        `clean_ce/head_{h}` (on clean targets), `noise/…` and, with a reference, `excess_auc` (probability that a clean
        target's excess loss on heads ≥ 1 is above a noisy one's; `excess_auc/{kind}`: above one's of that kind); with
        rewards `value_auc` (the same of values at the ends of good and bad documents).
    """
    horizon, kinds_and_clean = objective.horizon, len(kinds) + 1
    # By head and kind: ce, targets, and how many were selected, predicted right, and kept as drafts.
    sums = torch.zeros(horizon, kinds_and_clean, 5, dtype=torch.float64)
    excesses: list[tuple[Tensor, Tensor]] = []
    values: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        output, signals = objective.forward(batch, step, predict=True)
        assert output.predicted is not None
        noise = torch.zeros_like(batch.input_ids) if batch.noise is None else batch.noise  # without labels all is clean
        kind = shift_to_heads(noise, horizon)  # [B, S, H]
        weights = objective.weighting.compute_head_weights(replace(signals, noise=noise))
        cell = (kind + kinds_and_clean * torch.arange(horizon, device=kind.device))[signals.valid].cpu()
        right = output.predicted == shift_to_heads(batch.labels, horizon)
        counts = [signals.valid, weights != 0, right, accepted_drafts(output.predicted)]
        amounts = torch.stack([signals.ce, *(count.float() for count in counts)], dim=-1)  # [B, S, H, 5]
        sums.view(-1, 5).index_add_(0, cell, amounts[signals.valid].double().cpu())
        if kinds and signals.reference_ce is not None:
            later = signals.valid[..., 1:]
            excess = excess_loss(signals.ce, signals.reference_ce)[..., 1:][later]
            excesses.append((excess.cpu(), kind[..., 1:][later].cpu()))
        if output.values is not None and batch.rewards is not None:
            ends = document_ends(batch.document_ids) & ~batch.rewards.isnan()
            values.append((output.values[ends].cpu(), (batch.rewards[ends] > 0.5).cpu()))
    sums = torch.stack(all_gather_object(sums)).sum(dim=0)
    ce, targets, selected, right, kept = sums.unbind(dim=-1)  # [H, kinds]
    figures = _by_head("ce", ce, targets) | _by_head("accuracy", right, targets)
    if horizon > 1:
        acceptance = _by_head("acceptance", kept, targets, first=1)
        figures |= acceptance | {"tokens_per_forward": 1 + sum(acceptance.values())}
    if targets[:, 1:].sum() > 0:
        figures |= _by_head("clean_ce", ce[:, :1], targets[:, :1])
        figures |= noise_figures(targets[1:].sum(0).tolist(), selected[1:].sum(0).tolist(), kinds)
        if excesses:
            excess, kind = _over_ranks(excesses)
            figures["excess_auc"] = auc(excess, kind == 0)
            for number, name in enumerate(kinds, start=1):
                compared = (kind == 0) | (kind == number)
                figures[f"excess_auc/{name}"] = auc(excess[compared], kind[compared] == 0)
    if values:
        figures["value_auc"] = auc(*_over_ranks(values))
    # Where all documents are good, or all are bad, there is nothing to tell apart.
    return {name: figure for name, figure in figures.items() if not math.isnan(figure)}


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

    Args:
        scores: float `[n]`; positive: bool `[n]`.

    Returns:
        In [0, 1], or nan if all are positive or all negative.
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts - 1).double() / 2)[place]  # the mean rank of equal scores, from 1
    n = positive.sum().double()
    return ((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))).item()


def _over_ranks(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Two columns, of all ranks."""
    mine = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
    first, second = (torch.cat(column) for column in zip(*all_gather_object(mine), strict=True))
    return first, second


def _by_head(name: str, totals: Tensor, targets: Tensor, first: int = 0) -> dict[str, float]:
    """A mean over targets for each head from `first` on; both are `[H, kinds]`."""
    means = totals.sum(dim=-1) / targets.sum(dim=-1).clamp(min=1)
    return {f"{name}/head_{h}": mean for h, mean in enumerate(means.tolist()) if h >= first}
