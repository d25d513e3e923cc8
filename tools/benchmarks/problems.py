"""Inputs of the loss op that look like training: losses of many sizes, a reference that knows some of the tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmtp_core import WeightingInputs, mtp_targets, shift_to_heads

_DOCUMENT = 32  # positions that are about as hard as each other


@dataclass(frozen=True)
class LossShape:
    """Sizes of one problem; all heads together have `positions · horizon` rows."""

    vocab_size: int
    positions: int
    hidden_size: int
    horizon: int = 4
    batch: int = 2

    @property
    def pass_flop(self) -> int:
        """U: floating-point operations of one product of all rows with the unembedding."""
        return 2 * self.positions * self.horizon * self.hidden_size * self.vocab_size


@dataclass(frozen=True)
class LossProblem:
    """What a loss op is given, with P = B·S positions."""

    hidden: Tensor
    """`[P·H, D]`, a leaf that requires a gradient."""
    weight: Tensor
    """`[V, D]`, a leaf that requires a gradient."""
    targets: Tensor
    """int64 `[B, S, H]`, -100 where not valid."""
    valid: Tensor
    """bool `[B, S, H]`."""
    reference_ce: Tensor
    """float32 `[B, S]`, by target position."""

    @property
    def counts(self) -> Tensor:
        """Valid targets of each head, int64 `[H]`."""
        return self.valid.sum(dim=(0, 1))

    @property
    def inputs(self) -> WeightingInputs:
        """What a weighting may look at."""
        row_ids = torch.arange(len(self.targets), device=self.targets.device)
        return WeightingInputs(valid=self.valid, step=0, row_ids=row_ids, reference_ce=self.reference_ce)


def make_loss_problem(shape: LossShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> LossProblem:
    """Return a problem of that shape, the same for the same seed whatever the device.

    A prediction's loss is about `log V` less how well its hidden state points at its target. That differs from document
    to document and from token to token, falls with the head, and the reference agrees with it in part.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw)

    batch, length = shape.batch, shape.positions // shape.batch
    labels = torch.randint(shape.vocab_size, (batch, length), generator=draw)
    targets, valid = mtp_targets(labels, shape.horizon)  # [B, S, H]
    by_document = normal(batch, -(-length // _DOCUMENT)).repeat_interleave(_DOCUMENT, dim=1)[:, :length]
    nothing_known = math.log(shape.vocab_size) + 0.5  # the logits of other tokens have variance 1
    known = nothing_known * torch.sigmoid(0.5 + by_document + normal(batch, length))  # [B, S], nats, by target position
    fading = 0.85 ** torch.arange(shape.horizon)  # [H]
    pull = shift_to_heads(known, shape.horizon) * fading + normal(*targets.shape)  # [B, S, H]
    reference_ce = torch.nn.functional.softplus(nothing_known - known - normal(batch, length))

    weight = normal(shape.vocab_size, shape.hidden_size) / shape.hidden_size**0.5
    towards = weight[targets.clamp(min=0).flatten()] * pull.reshape(-1, 1)  # [P·H, D]
    hidden = towards + normal(*towards.shape)
    return LossProblem(
        hidden=hidden.to(device, dtype).requires_grad_(),
        weight=weight.to(device, dtype).requires_grad_(),
        targets=targets.to(device),
        valid=valid.to(device),
        reference_ce=reference_ce.to(device),
    )
