"""Training steps to time: the step that trains, in one process and without DeepSpeed, for every algorithm compared."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.step_shape import StepShape, frequent_and_rare_tokens, small_llama
from wmtp_core import (
    CriticWeighting,
    HeadWeighting,
    Rho1Weighting,
    UniformWeighting,
    dense_cross_entropy,
    mtp_targets,
)
from wmtp_models import MtpForCausalLM, MtpOutput, ReferenceModel, choose_attention, set_attention
from wmtp_models.trunk.packing_layout import DocumentBounds
from wmtp_train.algorithms.critic import RewardObjective
from wmtp_train.data.batch import Batch
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.step import MicroBatchLoss, Step

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
    head_kind: str = "layer"
    next_token: bool = False
    """Head 0 alone."""


STEP_VARIANTS = {
    "mtp-baseline, naive": StepVariant(UniformWeighting(), dense=True),
    "mtp-baseline, fused": StepVariant(UniformWeighting()),
    "rho1, live reference": StepVariant(Rho1Weighting(), reference="live"),
    "rho1, scored": StepVariant(Rho1Weighting(), reference="scored"),
    "critic": StepVariant(CriticWeighting(), has_critic=True),
    "mtp-baseline, sequential heads": StepVariant(UniformWeighting(), head_kind="sequential"),
    "next token, fused": StepVariant(UniformWeighting(), next_token=True),
}


class Alone(Mesh):
    """A mesh of one process, which meets nobody and needs no process group."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(0, 1, device, None, None, None)  # type: ignore[arg-type]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor as the only rank's, `[1, …]`."""
        return tensor.unsqueeze(0)

    def all_reduce(self, tensor: Tensor, op: Any = None) -> Tensor:
        """Return the tensor: there is nothing to add."""
        return tensor


class LocalEngine:
    """What `Step.train` asks of an engine, on a policy in this process.

    Args:
        policy: the model.
        optimizer: None leaves the gradients in the parameters.
        mark: told where backward and optimizer end.
    """

    def __init__(self, policy: nn.Module, optimizer: torch.optim.Optimizer | None, mark: Mark) -> None:
        self.policy, self.optimizer, self.mark = policy, optimizer, mark

    def train(self) -> None:
        """Put the policy into training mode."""
        self.policy.train()

    def backward_and_step(self, loss: Tensor) -> None:
        """Form the gradients, and take the step."""
        loss.backward()
        self.mark("trunk backward")
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.mark("optimizer")


class TrainingStep:
    """A policy with its optimizer, a batch, and the reference or the rewards that its algorithm needs.

    The same seed gives every variant of a shape the same policy, reference, tokens and rewards.

    Args:
        variant: the algorithm.
        shape: of model and batch.
        device: where all is.
        dtype: float32, or bfloat16 for autocast around a float32 policy.
        mark: told where each part of a step ends.
        beside: another step of this shape, whose trunk and optimizer this one shares: a device holds a model of a real
            size once, and not for each variant.
        attention: as `model.attention`.
    """

    def __init__(
        self,
        variant: StepVariant,
        shape: StepShape,
        device: torch.device,
        dtype: torch.dtype,
        mark: Mark = lambda part: None,
        beside: "TrainingStep | None" = None,
        attention: str = "sdpa",
    ) -> None:
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        torch.manual_seed(0)
        self.batch = _batch(shape, has_rewards=variant.has_critic).to(device)
        horizon = 1 if variant.next_token else shape.horizon
        if beside is None:
            self.policy = MtpForCausalLM.wrap(_llama(shape, device), horizon, head_kind=variant.head_kind).to(device)
        else:  # as `wrap` does it, whose look at the trunk was taken
            config = copy.deepcopy(beside.policy.config)
            config.horizon, config.head_kind = horizon, variant.head_kind
            self.policy = MtpForCausalLM(config, beside.policy.unwrap()).to(device)
        reference = None if variant.reference == "none" else ReferenceModel(_llama(shape, device)).to(device)
        for model in (self.policy, reference):
            if model is not None:
                set_attention(model, choose_attention(model.causal_lm, True, attention, device, dtype).implementation)
        if reference is not None and variant.reference == "scored":
            with self.autocast:
                scores = reference.token_losses(self.batch.input_ids, document_ids=self.batch.document_ids)
            self.batch, reference = replace(self.batch, reference_ce=scores), None
        if variant.has_critic:
            self.policy.add_value_head()
            assert self.policy.value_head is not None
            scale = shape.hidden_size**-0.5  # at 0, where it starts, all values are 0 and all weights 1
            torch.nn.init.normal_(self.policy.value_head.value.weight, std=scale)
        if beside is None:
            self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-4)
        else:
            self.optimizer, theirs = beside.optimizer, set(beside.policy.causal_lm.parameters())
            self.optimizer.add_param_group({"params": [p for p in self.policy.parameters() if p not in theirs]})
        self.mark = mark
        self.step = Step(
            self._dense if variant.dense else self.policy,
            variant.weighting,
            horizon,
            Alone(device),
            reference,
            RewardObjective(1.0) if variant.has_critic else None,
            VALUE_COEFFICIENT,
        )

    def __call__(self) -> None:
        """Take one optimizer step."""
        self._train(self.optimizer)

    def forward_backward(self) -> MicroBatchLoss:
        """Add the step's gradient to what the parameters hold; returns its losses."""
        return self._train(None)

    def _train(self, optimizer: torch.optim.Optimizer | None) -> MicroBatchLoss:
        with self.autocast:
            losses, _ = self.step.train(LocalEngine(self.policy, optimizer, self.mark), [self.batch], 0)  # type: ignore[arg-type]
        return losses[0]

    def _dense(self, input_ids: Tensor, document_ids: Tensor, **_: Any) -> MtpOutput:
        logits = self.policy.head_logits(input_ids, document_ids=document_ids)  # [B, S, H, V]
        targets, valid = mtp_targets(input_ids, logits.shape[2], document_ids=document_ids)
        return MtpOutput(dense_cross_entropy(logits, targets), valid, None)


def _llama(shape: StepShape, device: torch.device) -> PreTrainedModel:
    """Return a new Llama in main memory, drawn on the device: a processor takes long for a billion weights."""
    with device:
        return small_llama(shape).cpu()


def _batch(shape: StepShape, has_rewards: bool) -> Batch:
    """Return random tokens, two documents a row."""
    tokens = frequent_and_rare_tokens(shape)
    documents = (torch.arange(shape.length) * 2 // shape.length).expand(shape.batch, -1)
    positions = torch.arange(shape.length) - documents * -(-shape.length // 2)
    starts = torch.arange(2 * shape.batch + 1, dtype=torch.int32) * shape.length // 2
    starts[1::2] += shape.length % 2  # the first document of a row is the longer one
    rewards = torch.rand(shape.batch, 1).expand_as(tokens)
    return Batch(
        input_ids=tokens,
        labels=tokens,
        position_ids=positions,
        document_ids=documents,
        row_ids=torch.arange(shape.batch),
        rewards=rewards if has_rewards else None,
        bounds=DocumentBounds(starts, -(-shape.length // 2)),
    )
