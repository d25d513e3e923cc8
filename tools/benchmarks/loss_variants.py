"""The loss op, forward and backward, in every form that the benchmark compares."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.peers import PEERS, PerTokenLoss, Unavailable
from benchmarks.problems import LossProblem
from wmtp_core import (
    GradientHint,
    HeadWeighting,
    Rho1Weighting,
    UniformWeighting,
    WeightHint,
    WeightPlan,
    dense_cross_entropy,
    linear_cross_entropy,
    weighted_mtp_loss,
)
from wmtp_core.losses import logits_chunk

NAIVE = "naive"
UNIFORM, RHO1 = UniformWeighting(), Rho1Weighting(k_percent=0.6)


@dataclass(frozen=True)
class LossVariant:
    """One way to the weighted loss and its gradients."""

    name: str
    weighting: HeadWeighting
    cross_entropy: PerTokenLoss | None = None
    """Hidden states `[N, D]`, unembedding `[V, D]` and targets `[N]` to losses `[N]`; None: ours, with a hint."""
    compiled: bool = False
    """Ours, with what torch.compile makes in the place of the Triton kernels."""
    is_peer: bool = False
    """Somebody else's: where it is wrong or does not run, it is left out and the reason printed."""

    def __call__(self, problem: LossProblem, watch: Callable[[WeightHint], WeightHint] | None = None) -> "LossResult":
        """Fill `problem.hidden.grad` and `problem.weight.grad` anew.

        Args:
            watch: wraps the hint that ours is given, where it is given one.
        """
        problem.hidden.grad = problem.weight.grad = None
        plan = self.weighting.plan(problem.inputs)
        with patch.object(logits_chunk, "has_triton", lambda _: False) if self.compiled else nullcontext():
            ce = self._losses(problem, plan, watch).view_as(problem.targets)
            weights = plan.weights(ce.detach())
            loss = weighted_mtp_loss(ce, weights, problem.counts)
            loss.backward()
        return LossResult(loss.detach(), weights)

    def _losses(
        self, problem: LossProblem, plan: WeightPlan, watch: Callable[[WeightHint], WeightHint] | None
    ) -> Tensor:
        hidden, weight, targets = problem.hidden, problem.weight, problem.targets.flatten()
        if self.cross_entropy is not None:
            return self.cross_entropy(hidden, weight, targets)
        hint = plan.hint()
        assert hint is not None, "the rules that are compared all have hints"
        hint = watch(hint) if watch else hint
        return linear_cross_entropy(hidden, weight, targets, hint=GradientHint(hint, 1 / problem.counts.clamp(min=1)))


@dataclass(frozen=True)
class LossResult:
    """The loss, a scalar, and the head weights `[B, S, H]` that it was taken with."""

    loss: Tensor
    weights: Tensor


@dataclass
class WatchedHint:
    """A hint that remembers what it said."""

    hint: WeightHint
    said: dict[str, list[Tensor]] = field(default_factory=lambda: {"positions": [], "weights": []})

    @property
    def share(self) -> float:
        """As the hint's."""
        return self.hint.share

    @property
    def wrong(self) -> float:
        """As the hint's."""
        return self.hint.wrong

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """As the hint."""
        weights = self.hint(positions, ce)
        self.said["positions"].append(positions)
        self.said["weights"].append(weights)
        return weights

    def share_wrong(self, weights: Tensor, valid: Tensor) -> float:
        """Return the share of valid predictions, bool `[B, S, H]`, of which the hint was wrong."""
        hinted = torch.zeros_like(weights).flatten(0, 1)  # [P, H]
        hinted[torch.cat(self.said["positions"])] = torch.cat(self.said["weights"])
        wrong = (hinted.view_as(weights) != 0) != (weights != 0)
        return float((wrong & valid).sum() / valid.sum())


def share_hinted_wrong(variant: LossVariant, problem: LossProblem) -> float | None:
    """Return how much of a problem the variant's hint gets wrong; None where it has no hint."""
    watched: list[WatchedHint] = []

    def watch(hint: WeightHint) -> WatchedHint:
        watched.append(WatchedHint(hint))
        return watched[-1]

    result = variant(problem, watch)
    return watched[0].share_wrong(result.weights, problem.valid) if watched else None


def loss_variants(device: torch.device) -> tuple[dict[str, LossVariant], dict[str, str]]:
    """Return what there is to compare on a device, by name and the naive form first, and why the rest is not."""
    variants = [
        LossVariant(NAIVE, RHO1, _naive),
        LossVariant("fused, no selection", UNIFORM),
        LossVariant("ours, rho1", RHO1),
        LossVariant("ours, rho1, no hint", RHO1, linear_cross_entropy),
    ]
    if device.type == "cuda":
        variants.append(LossVariant("ours, rho1, compiled", RHO1, compiled=True))
    skipped = {}
    for name, load in PEERS.items():
        try:
            variants.append(LossVariant(name, RHO1, load(device), is_peer=True))
        except Unavailable as reason:
            skipped[name] = str(reason)
    return {variant.name: variant for variant in variants}, skipped


def _naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the logits of all heads at once, and autograd."""
    return dense_cross_entropy(torch.nn.functional.linear(hidden, weight), targets)
