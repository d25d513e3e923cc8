"""What a run minimises: the weighted multi-token loss, and the value head's loss where there is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core import GradientHint, HeadWeighting, WeightingInputs, mtp_targets, weighted_mtp_loss
from wmtp_models import MtpOutput, ReferenceModel
from wmtp_train.data.batch import Batch

ValueObjective = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""Values `[B, S]` and their batch → losses `[B, S]`, and how many losses stand at each token `[B, S]`."""


@dataclass(frozen=True)
class LossNormalizers:
    """Denominators over all ranks and micro-batches of one optimizer step, known before any forward."""

    heads: Tensor
    """int64 `[H]`, N_h."""
    values: Tensor
    """int64 scalar, the losses that the value head learns from."""


@dataclass(frozen=True)
class MicroBatchLoss:
    """One micro-batch's share of the step's loss on this rank, and what it is made of."""

    total: Tensor
    """What is differentiated."""
    policy: Tensor
    value_sum: Tensor
    value_count: Tensor
    signals: WeightingInputs
    weights: Tensor


@dataclass(frozen=True)
class Objective:
    """The loss of a policy on a batch, given how much each prediction is worth.

    Args:
        policy: the engine, or a bare `MtpForCausalLM`.
        weighting: how much each prediction is worth.
        reference: computes the reference losses of batches that carry none; None where nothing needs them.
        value_objective: what the value head learns from, or None.
        value_coefficient: weight of the value loss in the total.
        normalize_by: "valid" or "selected".
        horizon: number of heads H.
    """

    policy: Callable[..., MtpOutput]
    weighting: HeadWeighting
    reference: ReferenceModel | None
    value_objective: ValueObjective | None
    value_coefficient: float
    normalize_by: str
    horizon: int

    def count_targets(self, batches: list[Batch], step: int) -> LossNormalizers:
        """Count what the micro-batches of one step hold, over all ranks. No host synchronisation."""
        valid = torch.stack([self._valid(batch).sum(dim=1) for batch in batches])  # [accumulation, m, H]
        gathered = [torch.empty_like(valid) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, valid)
        per_row = torch.cat(gathered, dim=1)  # [accumulation, R·m, H]
        if self.normalize_by == "selected":
            heads = torch.stack([self.weighting.selected_counts(rows, step) for rows in per_row]).sum(dim=0)
        else:
            heads = per_row.sum(dim=(0, 1))
        values = torch.zeros((), dtype=torch.int64, device=valid.device)
        if self.value_objective is not None:
            for batch in batches:
                _, count = self.value_objective(torch.zeros(batch.input_ids.shape, device=valid.device), batch)
                values += count.sum(dtype=torch.int64)
            dist.all_reduce(values)
        return LossNormalizers(heads, values)

    def loss(self, batch: Batch, step: int, counts: LossNormalizers) -> MicroBatchLoss:
        """Losses, weights, loss: one forward. Summed over ranks and micro-batches it is the step's loss."""
        output, signals = self.forward(batch, step, counts)
        with torch.no_grad():
            weights = self.weighting.compute_head_weights(signals)
        total = policy = weighted_mtp_loss(output.ce, weights, counts.heads)
        value_sum, value_count = torch.zeros_like(policy), torch.zeros_like(policy)
        if self.value_objective is not None:
            assert output.values is not None
            losses, count = self.value_objective(output.values, batch)
            value_sum, value_count = losses.sum(), count.sum()
            total = policy + self.value_coefficient * value_sum / counts.values.clamp(min=1)
        return MicroBatchLoss(total, policy.detach(), value_sum.detach(), value_count, signals, weights)

    def forward(
        self, batch: Batch, step: int, counts: LossNormalizers | None = None, predict: bool = False
    ) -> tuple[MtpOutput, WeightingInputs]:
        """The policy's losses on a batch, and what a weighting may look at.

        Args:
            counts: the denominators, where a backward follows: a guess of its gradient then makes it cheaper.
            predict: also find every head's most probable token.
        """
        reference_ce = batch.reference_ce
        if reference_ce is None and self.reference is not None:
            reference_ce = self.reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)
        known = WeightingInputs(
            ce=torch.empty(0, device=batch.input_ids.device),
            valid=self._valid(batch),
            step=step,
            row_ids=batch.row_ids,
            document_ids=batch.document_ids,
            reference_ce=reference_ce,
            noise=batch.noise,
        )

        def guess(values: Tensor | None) -> GradientHint | None:
            assert counts is not None
            weights = self.weighting.guess_weights(replace(known, values=values))
            return None if weights is None else GradientHint(weights, 1 / counts.heads.clamp(min=1))

        output = self.policy(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            guess=None if counts is None else guess,
            predict=predict,
        )
        values = None if output.values is None else output.values.detach()
        return output, replace(known, ce=output.ce.detach(), values=values)

    def _valid(self, batch: Batch) -> Tensor:
        return mtp_targets(batch.labels, self.horizon, document_ids=batch.document_ids)[1]
