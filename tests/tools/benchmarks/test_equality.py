import pytest
import torch
from torch import Tensor

from benchmarks.equality import WrongResult, check_loss_variant, check_selection
from benchmarks.loss_variants import RHO1, LossVariant, loss_variants
from benchmarks.problems import LossProblem, LossShape, make_loss_problem
from wmtp_core import UniformWeighting, WeightingInputs, linear_cross_entropy
from wmtp_core.weighting.uniform import StaticPlan

CPU = torch.device("cpu")
VARIANTS = loss_variants(CPU)[0]


@pytest.fixture
def problem() -> LossProblem:
    return make_loss_problem(LossShape(vocab_size=300, positions=64, hidden_size=16), CPU, torch.float32)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_variant_is_right(name: str, dtype: torch.dtype) -> None:
    small = make_loss_problem(LossShape(vocab_size=300, positions=64, hidden_size=16), CPU, dtype)
    assert check_loss_variant(VARIANTS[name], small) <= (2e-4 if dtype == torch.float32 else 2e-2)


def _one_row_without_gradient(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    ce = linear_cross_entropy(hidden, weight, targets)
    first = torch.arange(len(ce)) == 0
    return torch.where(first, ce.detach(), ce)


def _without_the_weights_gradient(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight.detach() + 0 * weight, targets)


def _losses_of_the_negative(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(-hidden, weight, targets)


@pytest.mark.parametrize(
    ("cross_entropy", "message"),
    [
        (_one_row_without_gradient, "wrong: gradient of hidden is off"),
        (_without_the_weights_gradient, "wrong: gradient of weight is off"),
        (_losses_of_the_negative, "keeps a target and drops one of higher excess loss"),
    ],
)
def test_a_wrong_loss_is_noticed(problem: LossProblem, cross_entropy: object, message: str) -> None:
    with pytest.raises(WrongResult, match=message):
        check_loss_variant(LossVariant("wrong", RHO1, cross_entropy), problem)  # type: ignore[arg-type]


def test_wrong_uniform_weights_are_noticed(problem: LossProblem) -> None:
    class Half(UniformWeighting):
        def plan(self, inputs: WeightingInputs) -> StaticPlan:
            counts = inputs.targets_per_row().sum(dim=0)
            return StaticPlan(inputs.valid * (torch.arange(4) < 2).float(), counts)

    with pytest.raises(WrongResult, match="not uniform"):
        check_loss_variant(LossVariant("wrong", Half(), linear_cross_entropy), problem)


def test_a_wrong_selection_is_noticed(problem: LossProblem) -> None:
    ce = torch.rand(2, 32, 4)
    right = RHO1.plan(problem.inputs).weights(ce)
    given = (ce, problem.reference_ce, problem.valid, 0.0)
    check_selection("right", right, *given)

    missing = right.clone()
    missing[0, 0, 0] = 0
    with pytest.raises(WrongResult, match="head 0 must keep"):
        check_selection("wrong", missing, *given)
    fewer = right.clone()
    fewer[(*right[..., 2].nonzero()[0], 2)] = 0
    with pytest.raises(WrongResult, match="head 2 keeps 34 targets, and not 35 valid ones"):
        check_selection("wrong", fewer, *given)
    swapped = fewer.clone()
    dropped = ((right[..., 2] == 0) & problem.valid[..., 2]).nonzero()
    best = max(dropped.tolist(), key=lambda at: -float(ce[at[0], at[1], 2] - problem.reference_ce[at[0], at[1] + 3]))
    swapped[best[0], best[1], 2] = 1
    with pytest.raises(WrongResult, match="head 2 keeps a target and drops one of higher"):
        check_selection("wrong", swapped, *given)
