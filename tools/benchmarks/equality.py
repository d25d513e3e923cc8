"""Nothing is timed before it is right: results against a dense computation in float64."""

import math

import torch
from torch import Tensor

from benchmarks.loss_variants import RHO1, LossVariant
from benchmarks.problems import LossProblem

# Far above rounding and far below what one wrong row does: of the norm of a gradient, and in nats for a loss.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 2e-2}
_LOSS_SLACK = {torch.float32: 2e-5, torch.bfloat16: 0.2}


class WrongResult(Exception):
    """A variant computes something else than it should; a defect of the variant or of the benchmark."""


def check_loss_variant(variant: LossVariant, problem: LossProblem) -> float:
    """Compare selection, loss and both gradients with float64; returns the largest error found, relative to the norm.

    Raises:
        WrongResult: the selection is not the exact one, or something differs by more than rounding.
    """
    dtype = problem.hidden.dtype
    result = variant(problem)
    assert problem.hidden.grad is not None
    assert problem.weight.grad is not None
    found = {"loss": result.loss, "gradient of hidden": problem.hidden.grad, "gradient of weight": problem.weight.grad}

    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (problem.hidden, problem.weight))
    logits = hidden @ weight.T
    ce = torch.nn.functional.cross_entropy(logits, problem.targets.flatten(), reduction="none").view_as(problem.targets)
    if variant.weighting is RHO1:
        check_selection(
            variant.name, result.weights, ce.detach(), problem.reference_ce, problem.valid, _LOSS_SLACK[dtype]
        )
    elif not torch.equal(result.weights != 0, problem.valid):
        raise WrongResult(f"{variant.name}: weights that are not uniform")
    horizon = ce.shape[-1]
    loss = sum((ce[..., h] * result.weights[..., h]).sum() / problem.counts[h] for h in range(horizon)) / horizon
    assert isinstance(loss, Tensor)
    loss.backward()
    expected = (loss.detach(), hidden.grad, weight.grad)
    return max(
        require_close(f"{variant.name}: {name}", value, exact, TOLERANCE[dtype])
        for (name, value), exact in zip(found.items(), expected, strict=True)
    )


def check_selection(
    name: str, weights: Tensor, ce: Tensor, reference_ce: Tensor, valid: Tensor, slack: float, k_percent: float = 0.6
) -> None:
    """Check that head 0 is whole, and that later heads keep exactly their k valid targets of highest excess loss.

    Args:
        weights: `[B, S, H]`, 0 and 1.
        ce: exact losses `[B, S, H]`.
        reference_ce: `[B, S]`, by target position.
        valid: bool `[B, S, H]`.
        slack: how far, in nats, two excess losses must be apart for rounding not to turn them round.
    """
    kept = weights != 0
    if not torch.equal(kept[..., 0], valid[..., 0]):
        raise WrongResult(f"{name}: head 0 must keep every valid target")
    length = ce.shape[1]
    for h in range(1, ce.shape[-1]):
        excess = ce[:, : length - h - 1, h] - reference_ce[:, h + 1 :]  # [B, S-h-1]
        here, among = kept[:, : length - h - 1, h], valid[:, : length - h - 1, h]
        count = 1 + math.floor(k_percent * (int(among.sum()) - 1) + 1e-9)
        if int(kept[..., h].sum()) != count or not bool((here <= among).all()):
            raise WrongResult(f"{name}: head {h} keeps {int(kept[..., h].sum())} targets, and not {count} valid ones")
        if excess[here].min() < excess[among & ~here].max() - 2 * slack:
            raise WrongResult(f"{name}: head {h} keeps a target and drops one of higher excess loss")


def require_close(name: str, found: Tensor, expected: Tensor | None, tolerance: float) -> float:
    """Require two tensors equal but for rounding; returns the largest difference."""
    assert expected is not None
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= tolerance:
        raise WrongResult(f"{name} is off by {error:.1e} of its norm; {tolerance:.0e} is allowed")
    return error
