from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks import step_benchmark
from benchmarks.equality import WrongResult
from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS, TrainingStep
from wmtp_core import Rho1Weighting

CPU = torch.device("cpu")
SHAPE = StepShape(vocab_size=300, batch=2, length=24, hidden_size=32, layers=2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_benchmark, "CHECKED", SHAPE)


@pytest.mark.parametrize("name", STEP_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_step_has_the_gradients_of_its_dense_form(name: str, dtype: torch.dtype) -> None:
    error = step_benchmark.check_step(name, STEP_VARIANTS[name], CPU, dtype)
    assert error <= (2e-4 if dtype == torch.float32 else 5e-2)


def test_a_wrong_selection_is_noticed() -> None:
    class Backwards(Rho1Weighting):
        def select(self, scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            return super().select(-scores, valid)

    wrong = replace(STEP_VARIANTS["rho1, scored"], weighting=Backwards())
    with pytest.raises(WrongResult, match="drops one of higher excess loss"):
        step_benchmark.check_step("wrong", wrong, CPU, torch.float32)


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward_backward = TrainingStep.forward_backward

    def without_the_norms(step: TrainingStep) -> object:
        result = forward_backward(step)
        step.policy.causal_lm.base_model.norm.weight.grad.zero_()
        return result

    monkeypatch.setattr(TrainingStep, "forward_backward", without_the_norms)
    with pytest.raises(WrongResult, match="gradient is off"):
        step_benchmark.check_step("wrong", STEP_VARIANTS["mtp-baseline, fused"], CPU, torch.float32)


@pytest.fixture
def make_step() -> Callable[[str], TrainingStep]:
    return lambda name: TrainingStep(STEP_VARIANTS[name], SHAPE, CPU, torch.float32)


def test_live_and_scored_references_choose_the_same(make_step: Callable[[str], TrainingStep]) -> None:
    live, scored = make_step("rho1, live reference"), make_step("rho1, scored")
    assert scored.step.reference is None
    results = [step.forward_backward() for step in (live, scored)]
    assert torch.equal(results[0].weights, results[1].weights)
    assert torch.equal(results[0].total, results[1].total)
    assert results[0].weights.sum() < results[0].inputs.valid.sum()


def test_the_critics_weights_differ(make_step: Callable[[str], TrainingStep]) -> None:
    result = make_step("critic").forward_backward()
    assert result.weights[result.inputs.valid].std() > 0.05


@pytest.mark.parametrize("name", STEP_VARIANTS)
def test_a_step_trains_and_leaves_no_gradient(name: str, make_step: Callable[[str], TrainingStep]) -> None:
    step = make_step(name)
    before = [p.detach().clone() for p in step.policy.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.policy.parameters(), strict=True))
    assert all(p.grad is None for p in step.policy.parameters())
