"""Held-out metrics: each head's losses and predictions, and how well selection and values tell good text from bad."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmtp_core import WeightingInputs, accepted_drafts, excess_loss, shift_to_heads
from wmtp_core.advantages import document_ends
from wmtp_models import MtpOutput
from wmtp_train.data.batch import Batch
from wmtp_train.metrics.labels import label_metrics
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.step import Step

_GOOD = 0.5
"""Documents of a higher reward are good ones, to `value_auc`."""


def evaluate(step: Step, batches: Iterable[Batch], number: int, label_names: tuple[str, ...]) -> dict[str, float]:
    """Measure a policy on one held-out set, over all ranks. Every rank must call it with as many batches.

    Args:
        step: the policy, and the weighting whose selection is held against the token labels.
        batches: this rank's share of the set, where the policy computes.
        number: of the step, for weightings that depend on it.
        label_names: of the token labels 1, 2, …

    Returns:
        `ce/head_{h}` in nats per token; `accuracy/head_{h}`, how often its most probable token is the text's; for
        heads ≥ 1 `acceptance/head_{h}`, how often a decoder would accept its draft (`wmtp_core.accepted_drafts`), over
        its targets like the others, and `tokens_per_forward`, 1 and the sum of these; `sampled_acceptance/head_{h}` and
        `sampled_tokens_per_forward`, the same of a decoder that samples at temperature 1. Of trunks with routers
        `auxiliary_loss`, its mean over batches. With token labels `clean_ce/head_{h}` (on unlabeled targets), `noise/…`
        and, with a reference, `excess_auc` (probability that an unlabeled target's excess loss on heads ≥ 1 is above
        a labeled one's; `excess_auc/{label}`: above one's of that label); with rewards `value_auc` (the same of values
        at the ends of documents whose reward is above 0.5, and of the others).
    """
    totals = _Totals.zeros(step.horizon, len(label_names) + 1)
    for batch in batches:
        totals.add(batch, *step.evaluate(batch, number, predict=True), labeled=bool(label_names))
    metrics = totals.over_ranks(step.mesh).metrics(label_names)
    # Where all documents are good, or all are bad, there is nothing to tell apart.
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


@dataclass
class _Totals:
    """Sums by head and token label (0 unlabeled), float64 `[H, L+1]` on the CPU, and the pairs behind the AUCs."""

    ce: Tensor
    targets: Tensor
    selected: Tensor
    correct: Tensor
    accepted: Tensor
    sampled: Tensor  # how often drafts would be accepted in sampling
    auxiliary: Tensor  # [2]: the sum over batches, and their number
    excess: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of heads ≥ 1: excess [n], token label [n]
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # at documents' ends: value [n], good [n]

    @classmethod
    def zeros(cls, horizon: int, labels: int) -> "_Totals":
        ce, targets, selected, correct, accepted, sampled = torch.zeros(6, horizon, labels, dtype=torch.float64)
        return cls(ce, targets, selected, correct, accepted, sampled, torch.zeros(2, dtype=torch.float64))

    def add(self, batch: Batch, output: MtpOutput, inputs: WeightingInputs, weights: Tensor, labeled: bool) -> None:
        assert output.predicted is not None
        assert output.overlap is not None
        assert inputs.token_labels is not None
        horizon, labels = self.ce.shape
        valid, label = inputs.valid, shift_to_heads(inputs.token_labels, self.ce.shape[0])  # [B, S, H]
        cell = (label + labels * torch.arange(horizon, device=label.device))[valid].cpu()
        correct = output.predicted == shift_to_heads(batch.labels, horizon)
        accepted, sampled = accepted_drafts(output.predicted), output.overlap.cumprod(dim=-1)
        amounts = (output.ce, valid, weights != 0, correct, accepted, sampled)
        totals = (self.ce, self.targets, self.selected, self.correct, self.accepted, self.sampled)
        for total, amount in zip(totals, amounts, strict=True):
            total.view(-1).index_add_(0, cell, amount[valid].double().cpu())
        if output.auxiliary_loss is not None:
            self.auxiliary += torch.tensor([output.auxiliary_loss.item(), 1.0], dtype=torch.float64)
        if labeled and inputs.reference_ce is not None:
            later = valid[..., 1:]
            excess = excess_loss(output.ce, inputs.reference_ce)[..., 1:][later]
            self.excess.append((excess.cpu(), label[..., 1:][later].cpu()))
        if output.values is not None and batch.rewards is not None:
            ends = document_ends(batch.document_ids) & ~batch.rewards.isnan()
            self.values.append((output.values[ends].cpu(), (batch.rewards[ends] > _GOOD).cpu()))

    def over_ranks(self, mesh: Mesh) -> "_Totals":
        ranks: list[_Totals] = mesh.all_gather_object(self)[:: mesh.sequence.count]  # those of other rows
        names = ("ce", "targets", "selected", "correct", "accepted", "sampled", "auxiliary")
        sums = {name: torch.stack([getattr(rank, name) for rank in ranks]).sum(dim=0) for name in names}
        excess = [pair for rank in ranks for pair in rank.excess]
        return _Totals(**sums, excess=excess, values=[pair for rank in ranks for pair in rank.values])

    def metrics(self, label_names: tuple[str, ...]) -> dict[str, float]:
        targets = self.targets
        metrics = _by_head("ce", self.ce, targets) | _by_head("accuracy", self.correct, targets)
        if len(targets) > 1:
            acceptance = _by_head("acceptance", self.accepted, targets, first=1)
            metrics |= acceptance | {"tokens_per_forward": 1 + sum(acceptance.values())}
            sampled = _by_head("sampled_acceptance", self.sampled, targets, first=1)
            metrics |= sampled | {"sampled_tokens_per_forward": 1 + sum(sampled.values())}
        if self.auxiliary[1]:
            metrics["auxiliary_loss"] = (self.auxiliary[0] / self.auxiliary[1]).item()
        if targets[:, 1:].sum() > 0:
            metrics |= _by_head("clean_ce", self.ce[:, :1], targets[:, :1])
            metrics |= label_metrics(targets[1:].sum(0).tolist(), self.selected[1:].sum(0).tolist(), label_names)
            if self.excess:
                excess, label = _columns(self.excess)
                metrics["excess_auc"] = auc(excess, label == 0)
                for number, name in enumerate(label_names, start=1):
                    compared = (label == 0) | (label == number)
                    metrics[f"excess_auc/{name}"] = auc(excess[compared], label[compared] == 0)
        if self.values:
            metrics["value_auc"] = auc(*_columns(self.values))
        return metrics


def auc(scores: Tensor, positive: Tensor) -> float:
    """Return the area under the ROC curve: the probability that a positive scores above a negative, ties counted half.

    Args:
        scores: float `[n]`.
        positive: bool `[n]`.

    Returns:
        In [0, 1], or nan if all are positive or all negative.
    """
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts - 1).double() / 2)[place]  # the mean rank of equal scores, from 1
    n = positive.sum().double()
    return ((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))).item()


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = (torch.cat(column) for column in zip(*pairs, strict=True))
    return first, second


def _by_head(name: str, totals: Tensor, targets: Tensor, first: int = 0) -> dict[str, float]:
    """Return a mean over targets for each head from `first` on; both are `[H, L+1]`."""
    means = totals.sum(dim=-1) / targets.sum(dim=-1).clamp(min=1)
    return {f"{name}/head_{h}": mean for h, mean in enumerate(means.tolist()) if h >= first}
