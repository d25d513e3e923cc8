"""How much each prediction is worth: one small class per rule, all behind `HeadWeighting`."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.advantages import generalized_advantages, value_differences
from wmtp_core.errors import UserError
from wmtp_core.losses.fused import WeightHint
from wmtp_core.losses.hints import StaticHint, StreamingTopKHint
from wmtp_core.selection import Scope, check_k_percent, num_selected, select_by_excess
from wmtp_core.targets import shift_to_heads


@dataclass(frozen=True)
class WeightingInputs:
    """What a rule may look at for one micro-batch, detached. Optional ones are None where the run has none."""

    ce: Tensor
    """float32 `[B, S, H]`, 0 where not valid; of no rows before the forward."""
    valid: Tensor
    """bool `[B, S, H]`."""
    step: int
    """The optimizer step, from 0."""
    row_ids: Tensor
    """int64 `[B]`, which row of the data set each row is: the same whatever the number of processes."""
    document_ids: Tensor | None = None
    """int64 `[B, S]`."""
    reference_ce: Tensor | None = None
    """float32 `[B, S]`, indexed by target position."""
    values: Tensor | None = None
    """float32 `[B, S]`, the value head's V_t."""
    noise: Tensor | None = None
    """int64 `[B, S]`, the corpus's own labels: 0 clean, else the kind of noise."""


class HeadWeighting(Protocol):
    """A rule that says how much each prediction is worth."""

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        """float32 `[B, S, H]`, 0 where not valid. The signals carry no gradient, so neither does this."""
        ...

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        """How many targets each head will keep, known before the forward: int64 `[H]`. By default nobody knows.

        Args:
            valid_per_row: int64 `[rows, H]`, the valid targets of every row of the micro-batch over all ranks.
            step: the optimizer step, from 0.

        Raises:
            UserError: the rule does not know.
        """
        raise UserError(f'normalize_by: {type(self).__name__} does not know ahead what it selects; set it to "valid"')

    def guess_weights(self, signals: WeightingInputs) -> WeightHint | None:
        """What the weights will be, before the forward (`signals.ce` holds nothing yet). By default nobody knows.

        A guess lets the fused loss form gradients while it has the logits at hand; it never changes a result.
        """
        return None


@dataclass(frozen=True)
class UniformWeighting(HeadWeighting):
    """mtp-baseline: weight 1 on every valid target (Gloeckle et al., arXiv 2404.19737)."""

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        return signals.valid.float()

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return valid_per_row.sum(dim=0)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        return StaticHint(self.compute_head_weights(signals))


@dataclass(frozen=True)
class Rho1Weighting(HeadWeighting):
    """rho1-wmtp: head 0 whole, later heads their top k by signed excess loss over the reference.

    `from_head` 0 lets head 0 select too, as Rho-1 itself does.
    """

    k_percent: float = 0.6
    scope: Scope = "batch"
    group: dist.ProcessGroup | None = None
    from_head: int = 1

    def __post_init__(self) -> None:
        check_k_percent(self.k_percent)

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        reference_ce = required(signals.reference_ce, "rho1", "reference_ce")
        return select_by_excess(
            signals.ce, reference_ce, signals.valid, self.k_percent, self.scope, self.group, self.from_head
        )

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return num_selected_per_head(valid_per_row, self.k_percent, self.scope, self.from_head)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        reference_ce = required(signals.reference_ce, "rho1", "reference_ce")
        by_target = shift_to_heads(reference_ce, signals.valid.shape[-1])
        return StreamingTopKHint(by_target, signals.valid, self.k_percent, self.from_head)


@dataclass(frozen=True)
class UniformWarmup(HeadWeighting):
    """Weight 1 on every valid target for the first `steps`, then another rule: one that looks at what a model says of
    a text has little to go by before the model has learned anything."""

    rule: HeadWeighting
    steps: int

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        return self._at(signals.step).compute_head_weights(signals)

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return self._at(step).selected_counts(valid_per_row, step)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint | None:
        return self._at(signals.step).guess_weights(signals)

    def _at(self, step: int) -> HeadWeighting:
        return UniformWeighting() if step < self.steps else self.rule


@dataclass(frozen=True)
class CriticWeighting(HeadWeighting):
    """critic-wmtp: predictions of tokens that added more value weigh more.

    `transform="softmax"`: at each position n·softmax over its n valid heads of advantage / temperature.
    `transform="exp"`: exp(A/β) of whitened advantages, clipped and rescaled to mean 1 (advantage-weighted regression,
    Peng et al., arXiv 1910.00177).
    """

    discount: float = 0.95
    temperature: float = 0.7
    advantage: Literal["delta", "gae"] = "delta"
    gae_lambda: float = 0.95
    transform: Literal["softmax", "exp"] = "softmax"
    beta: float = 1.0
    clip: float = 5.0
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.advantage not in ("delta", "gae") or self.transform not in ("softmax", "exp"):
            raise UserError(
                f'critic: advantage {self.advantage!r} must be "delta" or "gae", '
                f'transform {self.transform!r} must be "softmax" or "exp"'
            )
        if min(self.temperature, self.beta, self.clip) <= 0:
            raise UserError("critic: temperature, beta and clip must be above 0")

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        values = required(signals.values, "critic", "values")
        advantages = value_differences(values, self.discount, signals.document_ids)  # [B, S]
        if self.advantage == "gae":
            advantages = generalized_advantages(advantages, self.discount, self.gae_lambda, signals.document_ids)
        per_head = shift_to_heads(advantages, signals.valid.shape[-1])  # [B, S, H]
        if self.transform == "softmax":
            return softmax_over_heads(per_head, signals.valid, self.temperature)
        return self._exponential(per_head, signals.valid)

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return valid_per_row.sum(dim=0)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        return StaticHint(self.compute_head_weights(signals))

    def _exponential(self, advantages: Tensor, valid: Tensor) -> Tensor:
        """Whitening and the mean of 1 are over all ranks' valid targets: the split of a batch does not matter."""
        masked = advantages.double().where(valid, 0)
        count, total, squares = self._sum_over_ranks(
            torch.stack([valid.sum().double(), masked.sum(), masked.square().sum()])
        )
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-12).sqrt()
        weights = ((masked - mean) / deviation / self.beta).exp().clamp(max=self.clip).where(valid, 0)
        return (weights * count / self._sum_over_ranks(weights.sum()).clamp(min=1e-12)).float()

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(sums, group=self.group)
        return sums


def softmax_over_heads(scores: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """`n · softmax(scores / temperature)` over each position's n valid heads, else 0. float32 `[B, S, H]`."""
    shares = (scores.float() / temperature).masked_fill(~valid, -torch.inf).softmax(dim=-1)
    weights = shares * valid.sum(dim=-1, keepdim=True)
    return weights.where(valid, 0)  # a position without any valid head has NaN shares


def required(tensor: Tensor | None, rule: str, name: str) -> Tensor:
    """The tensor, or a UserError that names the rule and what it lacks."""
    if tensor is None:
        raise UserError(f"the {rule} rule needs {name}, and the batch has none: give the run what computes it")
    return tensor


def num_selected_per_head(valid_per_row: Tensor, k_percent: float, scope: Scope, from_head: int) -> Tensor:
    """`selected_counts` of a rule that keeps the heads before `from_head` whole and a top k of the later ones."""
    per_comparison = valid_per_row.sum(dim=0, keepdim=True) if scope == "batch" else valid_per_row
    counts = num_selected(per_comparison, k_percent).sum(dim=0)
    counts[:from_head] = valid_per_row[:, :from_head].sum(dim=0)
    return counts
