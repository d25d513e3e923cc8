"""One optimizer step: what it minimizes, planned before any forward and summed over ranks and micro-batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmtp_core import (
    GradientPlan,
    HeadWeighting,
    UserError,
    WeightingInputs,
    WeightPlan,
    mtp_targets,
    weighted_mtp_loss,
)
from wmtp_models import MtpOutput, ReferenceModel
from wmtp_train.data.batch import Batch
from wmtp_train.engines.base import Engine
from wmtp_train.ranks.mesh import Mesh

ValueObjective = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""From values `[B, S]` and their batch to losses `[B, S]`, and how many losses stand at each token `[B, S]`."""


@dataclass(frozen=True)
class LossNormalizers:
    """Denominators over all ranks and micro-batches of one optimizer step, known before any forward."""

    heads: Tensor
    """int64 `[H]`, N_h."""
    values: Tensor
    """int64 scalar, the losses that the value head learns from."""
    micro_batches: int
    """Over all ranks: what auxiliary losses are averaged over."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch, what a weighting may look at, and what it plans for it."""

    batch: Batch
    inputs: WeightingInputs
    plan: WeightPlan


@dataclass(frozen=True)
class MicroBatchLoss:
    """One micro-batch's share of the step's loss on this rank, and what it is made of; all detached but the total."""

    total: Tensor
    """What is differentiated."""
    policy: Tensor
    value_sum: Tensor
    value_count: Tensor
    auxiliary: Tensor | None
    """The trunk's auxiliary loss, averaged over its micro-batches, as in the total; None where it has none."""
    inputs: WeightingInputs
    ce: Tensor
    losses: Tensor
    """What was weighted, float32 `[B, S, H]`: cross-entropies, or what a head learns in their place."""
    weights: Tensor


@dataclass(frozen=True)
class Step:
    """The loss of a policy, given how much each prediction is worth.

    Args:
        policy: the engine, or a bare `MtpForCausalLM`.
        weighting: how much each prediction is worth.
        horizon: number of heads H.
        mesh: the processes that share the step.
        reference: computes the reference losses of batches that carry none; None where nothing needs them.
        value_objective: what the value head learns from, or None.
        value_coefficient: weight of the value loss in the total.
        normalize_by: "valid" or "selected".
        head_coefficients: float32 `[H]`, of the heads' losses, where the policy computes; None: all 1.
    """

    policy: Callable[..., MtpOutput]
    weighting: HeadWeighting
    horizon: int
    mesh: Mesh
    reference: ReferenceModel | None = None
    value_objective: ValueObjective | None = None
    value_coefficient: float = 0.0
    normalize_by: str = "valid"
    head_coefficients: Tensor | None = None

    def train(self, engine: Engine, batches: list[Batch], number: int) -> tuple[list[MicroBatchLoss], Tensor | None]:
        """Take one optimizer step: count every target first, then a forward and a backward per micro-batch.

        Args:
            engine: whose policy this step's is.
            batches: this rank's micro-batches, where the engine computes.
            number: of the step, from 0.

        Returns:
            The micro-batches' losses, and the global norm of the gradient before clipping.
        """
        micro_batches, normalizers = self.plan(batches, number)
        engine.train()
        losses, norm = [], None
        for micro_batch in micro_batches:
            loss = self.loss(micro_batch, normalizers)
            # The engine averages over ranks and micro-batches; the loss is a share of a sum over them.
            norm = engine.backward_and_step(loss.total * normalizers.micro_batches)
            losses.append(loss)
        return losses, norm

    @torch.no_grad()
    def plan(self, batches: list[Batch], number: int) -> tuple[list[MicroBatch], LossNormalizers]:
        """Plan the weights of one step's micro-batches and count what they hold, over all ranks.

        Raises:
            UserError: `normalize_by` is "selected", and the weighting does not know ahead what it selects.
        """
        valid = [self._valid(batch) for batch in batches]
        per_row = self.mesh.all_gather(torch.stack([mask.sum(dim=1) for mask in valid]))  # [R, A, m, H]
        per_row = per_row.transpose(0, 1).flatten(1, 2)  # [A, R·m, H]
        micro_batches = [
            self._micro_batch(batch, number, mask, rows)
            for batch, mask, rows in zip(batches, valid, per_row, strict=True)
        ]
        heads = per_row.sum(dim=(0, 1))
        if self.normalize_by == "selected":
            heads = torch.stack([self._counts(micro_batch.plan) for micro_batch in micro_batches]).sum(dim=0)
        values = torch.zeros((), dtype=torch.int64, device=heads.device)
        if self.value_objective is not None:
            for batch in batches:
                _, count = self.value_objective(torch.zeros(batch.input_ids.shape, device=heads.device), batch)
                values += count.sum(dtype=torch.int64)
            self.mesh.all_reduce(values)
        return micro_batches, LossNormalizers(heads, values, len(batches) * self.mesh.world)

    def loss(self, micro_batch: MicroBatch, normalizers: LossNormalizers) -> MicroBatchLoss:
        """Compute losses, weights and the loss in one forward. Summed over all micro-batches it is the step's loss."""
        coefficients = self.head_coefficients
        per_head = (1 if coefficients is None else coefficients) / normalizers.heads.clamp(min=1)
        output = self._forward(micro_batch.batch, GradientPlan(micro_batch.plan, per_head))
        ce, weights = output.ce.detach(), self._weights(micro_batch, output)
        total = policy = weighted_mtp_loss(output.losses, weights, normalizers.heads, coefficients)
        value_sum, value_count = torch.zeros_like(policy), torch.zeros_like(policy)
        if self.value_objective is not None:
            assert output.values is not None
            losses, count = self.value_objective(output.values, micro_batch.batch)
            value_sum, value_count = losses.sum(), count.sum()
            total = total + self.value_coefficient * value_sum / normalizers.values.clamp(min=1)
        auxiliary = output.auxiliary_loss
        if auxiliary is not None:
            auxiliary = auxiliary / normalizers.micro_batches
            total = total + auxiliary
        return MicroBatchLoss(
            total,
            policy.detach(),
            value_sum.detach(),
            value_count,
            None if auxiliary is None else auxiliary.detach(),
            micro_batch.inputs,
            ce,
            output.losses.detach(),
            weights,
        )

    @torch.no_grad()
    def evaluate(self, batch: Batch, number: int, predict: bool = False) -> tuple[MtpOutput, WeightingInputs, Tensor]:
        """Compute losses and weights of a batch by itself, without a backward.

        Args:
            batch: this rank's rows; what is said of "all ranks" is then said of these.
            number: of the step, for weightings that depend on it.
            predict: also find every head's most probable token.

        Returns:
            The policy's output, what the weighting looked at (a batch without token labels counts as unlabeled
            throughout), and the weights float32 `[B, S, H]`.
        """
        if batch.token_labels is None:
            batch = replace(batch, token_labels=torch.zeros_like(batch.input_ids))
        micro_batch = self._micro_batch(batch, number, self._valid(batch), None)
        output = self._forward(batch, predict=predict)
        return output, micro_batch.inputs, self._weights(micro_batch, output)

    def _micro_batch(self, batch: Batch, number: int, valid: Tensor, valid_per_row: Tensor | None) -> MicroBatch:
        reference_ce = batch.reference_ce
        if reference_ce is None and self.reference is not None:
            reference_ce = self.reference.token_losses(
                batch.input_ids, batch.position_ids, batch.document_ids, bounds=batch.bounds
            )
        inputs = WeightingInputs(
            valid=valid,
            step=number,
            row_ids=batch.row_ids,
            document_ids=batch.document_ids,
            reference_ce=reference_ce,
            token_labels=batch.token_labels,
            valid_per_row=valid_per_row,
        )
        return MicroBatch(batch, inputs, self.weighting.plan(inputs))

    def _forward(self, batch: Batch, plan: GradientPlan | None = None, predict: bool = False) -> MtpOutput:
        return self.policy(
            input_ids=batch.input_ids,
            labels=batch.labels,
            position_ids=batch.position_ids,
            document_ids=batch.document_ids,
            attention_mask=batch.attention_mask,
            plan=plan,
            predict=predict,
            bounds=batch.bounds,
        )

    @torch.no_grad()
    def _weights(self, micro_batch: MicroBatch, output: MtpOutput) -> Tensor:
        values = None if output.values is None else output.values.detach()
        return micro_batch.plan.weights(output.ce.detach(), values)

    def _counts(self, plan: WeightPlan) -> Tensor:
        if plan.counts is None:
            raise UserError(
                f'normalize_by: {type(self.weighting).__name__} does not know ahead what it selects; set it to "valid"'
            )
        return plan.counts

    def _valid(self, batch: Batch) -> Tensor:
        return mtp_targets(batch.labels, self.horizon, document_ids=batch.document_ids)[1]
