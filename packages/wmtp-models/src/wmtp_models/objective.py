"""What the heads of a policy learn: the losses of their hidden states, and what these may move."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from wmtp_core import (
    Distillation,
    GradientHint,
    GradientPlan,
    WeightHint,
    linear_cross_entropy,
    linear_distillation,
)
from wmtp_core.losses.divergences import Divergence
from wmtp_core.losses.hints import StaticHint
from wmtp_models.trunk.row_slices import HintOfSlices, Slices

if TYPE_CHECKING:
    from wmtp_models.policy import MtpForCausalLM


@dataclass(frozen=True)
class Objective:
    """What heads after the first learn; head 0 always learns the text's next token.

    Attributes:
        divergence: they learn head 0's own distribution, and are so far from it; None: the text's tokens.
        cross_entropy: the text's share of the loss where they learn head 0's distribution, in [0, 1).
        detach_heads: whether their losses move nothing but themselves: not trunk, embedding, final norm or unembedding.
    """

    divergence: Divergence | None = None
    cross_entropy: float = 0.0
    detach_heads: bool = False


@contextmanager
def constant(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let what is computed in here take parameters as constants."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def head_losses(
    policy: "MtpForCausalLM", states: list[Tensor], targets: Tensor, plan: GradientPlan | None, values: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return cross-entropies, and the losses that are learned where these are others.

    Args:
        policy: whose heads they are.
        states: of every head, `[B, S/n, D]` each.
        targets: int64 `[B, S/n, H]`.
        plan: what gradient the losses will probably receive, or None.
        values: float32 `[B, S]`, of the value head, detached; or None.

    Returns:
        float32 `[B, S/n, H]`, and the same or None.
    """
    # The weight is used in here and nowhere else, so that ZeRO-3 gathers it around this forward and its backward.
    objective, weight = policy.objective, policy.trunk.weight
    cross_entropy = partial(linear_cross_entropy, transform=policy.trunk.transform)
    head_0_learns = weight.requires_grad or states[0].requires_grad  # or all below it
    hints = _Hints(policy.slices, plan, values, targets)
    if objective.divergence is None and not objective.detach_heads:
        hint = hints.of_all(weight, head_0_learns)
        flat = torch.stack(states, dim=2).flatten(0, 2)  # [B·S/n·H, D]
        ce = cross_entropy(flat, weight, targets.flatten(), hint=hint).view_as(targets)
        return (ce if head_0_learns else torch.cat([ce[..., :1].detach(), ce[..., 1:]], dim=-1)), None

    final, later = states[0].flatten(0, 1), targets[..., 1:]  # [P, D], [B, S/n, H−1]
    hint = hints.of(slice(0, 1), weight) if head_0_learns else None
    first = cross_entropy(final, weight, targets[..., 0].flatten(), hint=hint).view_as(targets[..., :1])
    if len(states) == 1:
        return first, None
    flat = torch.stack(states[1:], dim=2).flatten(0, 2)  # [P·(H−1), D]
    with constant(policy.trunk.unembedding.parameters()) if objective.detach_heads else nullcontext():
        hint = hints.of(slice(1, None), weight, first.detach().flatten())
        if objective.divergence is None:
            ce = cross_entropy(flat, weight, later.flatten(), hint=hint)
            return torch.cat([first, ce.view_as(later)], dim=-1), None
        teacher = Distillation(final, objective.divergence, objective.cross_entropy)
        losses, ce = linear_distillation(
            flat, weight, later.flatten(), teacher, hint=hint, transform=policy.trunk.transform
        )
    ces = torch.cat([first.detach(), ce.view_as(later)], dim=-1)
    return ces, torch.cat([first, losses.view_as(later)], dim=-1)


@dataclass(frozen=True)
class _Hints:
    """Hints of one forward, to losses that see all heads of a slice, or some of them."""

    slices: Slices
    plan: GradientPlan | None
    values: Tensor | None
    targets: Tensor

    def of_all(self, weight: Tensor, head_0_learns: bool) -> GradientHint | None:
        hint = self._hint(weight)
        if hint is None or head_0_learns:
            return hint
        # Or losses of head 0 would cost gradients that lead nowhere.
        return replace(hint, per_head=pad(hint.per_head[1:], (1, 0)))

    def of(self, heads: slice, weight: Tensor, known: Tensor | None = None) -> GradientHint | None:
        hint = self._hint(weight)
        if hint is None:
            return None
        return GradientHint(HintOfHeads(hint.weights, heads, len(hint.per_head), known), hint.per_head[heads])

    def _hint(self, weight: Tensor) -> GradientHint | None:
        hint = None if self.plan is None else self.plan.hint(self.values)
        if hint is not None:
            length = self.targets.shape[1] * self.slices.count
            return replace(hint, weights=HintOfSlices(hint.weights, self.slices, length))
        if self.plan is None or weight.requires_grad:
            return None
        # Where the weight learns nothing, a row's gradient is known ahead but for its factor.
        return GradientHint(StaticHint((self.targets != -100).float()), self.plan.per_head)


class HintOfHeads:
    """A hint of all heads' weights, to a loss that sees some of them.

    Args:
        hint: of all heads.
        heads: those that the loss sees.
        horizon: of all heads, H.
        known: float32 `[P]`, the losses of head 0; None: it is not known what the other heads' are, which makes a hint
            worse, and never a result.
    """

    def __init__(self, hint: WeightHint, heads: slice, horizon: int, known: Tensor | None) -> None:
        self.hint, self.heads, self.horizon, self.known = hint, heads, horizon, known
        self.share, self.wrong = 1.0 if known is None else hint.share, hint.wrong

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return what the hint says of these heads."""
        whole = ce.new_zeros(len(positions), self.horizon)
        whole[:, self.heads] = ce
        if self.known is not None:
            whole[:, 0] = self.known[positions]
        return self.hint(positions, whole)[:, self.heads]
