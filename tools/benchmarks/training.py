"""A training step in one process, without DeepSpeed, for every algorithm that the benchmark compares."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from benchmarks.step_shape import StepShape, frequent_and_rare_tokens, small_llama
from wmtp_core import (
    CriticWeighting,
    GradientHint,
    HeadWeighting,
    Rho1Weighting,
    UniformWeighting,
    WeightingInputs,
    dense_cross_entropy,
    mtp_targets,
    weighted_mtp_loss,
)
from wmtp_core.advantages import lambda_return_losses
from wmtp_models import MtpForCausalLM, MtpOutput, ReferenceModel

VALUE_COEFFICIENT = 0.1

Mark = Callable[[str], None]
"""Called when a part of a step is over, with its name."""


@dataclass(frozen=True)
class StepVariant:
    """One algorithm in one form."""

    weighting: HeadWeighting
    reference: Literal["none", "live", "scored"] = "none"
    dense: bool = False
    """Logits of all heads, and autograd."""
    has_critic: bool = False
    """The policy has a value head, which learns from rewards."""


STEP_VARIANTS = {
    "mtp-baseline, naive": StepVariant(UniformWeighting(), dense=True),
    "mtp-baseline, fused": StepVariant(UniformWeighting()),
    "rho1, live reference": StepVariant(Rho1Weighting(), reference="live"),
    "rho1, scored": StepVariant(Rho1Weighting(), reference="scored"),
    "critic": StepVariant(CriticWeighting(), has_critic=True),
}


@dataclass(frozen=True)
class StepResult:
    """What one forward and backward gave, detached; the gradients are in the policy."""

    loss: Tensor
    weights: Tensor
    signals: WeightingInputs


class TrainingStep:
    """A policy with its optimizer, a batch, and the reference or the rewards that its algorithm needs.

    The same seed gives every variant of a shape the same policy, reference, tokens and rewards.

    Args:
        dtype: float32, or bfloat16 for autocast around a float32 policy.
        mark: told where each part of a step ends.
    """

    scores: Tensor | None
    """The reference's losses where they were scored ahead, float32 `[B, S]`."""

    def __init__(
        self,
        variant: StepVariant,
        shape: StepShape,
        device: torch.device,
        dtype: torch.dtype,
        mark: Mark = lambda part: None,
    ) -> None:
        self.variant, self.horizon, self.mark = variant, shape.horizon, mark
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        torch.manual_seed(0)
        documents = torch.arange(shape.length) * 2 // shape.length
        self.take(frequent_and_rare_tokens(shape).to(device), documents.expand(shape.batch, -1).to(device))
        self.rewards = torch.rand(shape.batch, 1).expand_as(self.input_ids).to(device)
        self.policy = MtpForCausalLM.wrap(small_llama(shape), shape.horizon).to(device)
        self.reference = None if variant.reference == "none" else ReferenceModel(small_llama(shape)).to(device)
        if variant.reference == "scored":
            self.scores, self.reference = self._score(), None
        if variant.has_critic:
            self.policy.add_value_head()
            assert self.policy.value_head is not None
            scale = shape.hidden_size**-0.5  # at 0, where it starts, all values are 0 and all weights 1
            torch.nn.init.normal_(self.policy.value_head.value.weight, std=scale)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-4)

    def take(self, input_ids: Tensor, document_ids: Tensor, scores: Tensor | None = None) -> None:
        """Train on these from now on: int64 `[B, S]` twice, and the reference's losses float32 `[B, S]`."""
        self.input_ids, self.document_ids, self.scores = input_ids, document_ids, scores
        self.valid = mtp_targets(input_ids, self.horizon, document_ids=document_ids)[1]
        self.counts = self.valid.sum(dim=(0, 1))  # [H]

    def __call__(self) -> None:
        """One optimizer step."""
        self.forward_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.mark("optimizer")

    def forward_backward(self) -> StepResult:
        """The losses, their weights and the gradient, which is added to what the policy's parameters hold."""
        reference_ce = self.scores if self.reference is None else self._score()
        self.mark("reference")
        row_ids = torch.arange(len(self.input_ids), device=self.input_ids.device)
        known = WeightingInputs(
            torch.empty(0), self.valid, 0, row_ids, document_ids=self.document_ids, reference_ce=reference_ce
        )
        output = self._dense_losses() if self.variant.dense else self._fused_losses(known)
        self.mark("loss forward")
        values = None if output.values is None else output.values.detach()
        signals = replace(known, ce=output.ce.detach(), values=values)
        weights = self.variant.weighting.compute_head_weights(signals)
        loss = weighted_mtp_loss(output.ce, weights, self.counts)
        if output.values is not None:
            losses, counted = lambda_return_losses(output.values, self.rewards, 1.0, self.document_ids)
            loss = loss + VALUE_COEFFICIENT * losses.sum() / counted.sum()
        self.mark("selection")
        loss.backward()
        self.mark("trunk backward")
        return StepResult(loss.detach(), weights, signals)

    def _score(self) -> Tensor:
        assert self.reference is not None
        with self.autocast:
            return self.reference.token_losses(self.input_ids, document_ids=self.document_ids)

    def _fused_losses(self, known: WeightingInputs) -> MtpOutput:
        def guess(values: Tensor | None) -> GradientHint | None:
            weights = self.variant.weighting.guess_weights(replace(known, values=values))
            return None if weights is None else GradientHint(weights, 1 / self.counts.clamp(min=1))

        with self.autocast:
            output: MtpOutput = self.policy(self.input_ids, document_ids=self.document_ids, guess=guess)
        return output

    def _dense_losses(self) -> MtpOutput:
        with self.autocast:
            logits = self.policy.head_logits(self.input_ids, document_ids=self.document_ids)  # [B, S, H, V]
        targets, valid = mtp_targets(self.input_ids, self.horizon, document_ids=self.document_ids)
        return MtpOutput(dense_cross_entropy(logits, targets), valid, None)
