"""The benchmark of whole training steps: forward, backward and optimizer."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from benchmarks.comparison import Comparison, Measurement, those_that_fit
from benchmarks.equality import WrongResult, check_selection, require_close
from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS, VALUE_COEFFICIENT, StepVariant, TrainingStep
from wmtp_core import Rho1Weighting, UniformWeighting, dense_cross_entropy, mtp_targets, weighted_mtp_loss
from wmtp_core.advantages import lambda_return_losses
from wmtp_lab.measure.flop import count_flop
from wmtp_lab.measure.memory import peak_memory, why_not_measured
from wmtp_lab.measure.stopwatch import interleaved

# Layers in bfloat16 round more than a loss alone does.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2}
CHECKED = StepShape(vocab_size=131072, batch=2, length=24, hidden_size=32, layers=2)
_TINY = StepShape(vocab_size=512, batch=2, length=16, hidden_size=16, layers=2)
_LARGE_ON_CPU = [
    StepShape(8192, batch=4, length=256, hidden_size=256, layers=8),
    StepShape(32768, batch=2, length=256, hidden_size=256, layers=8),
    StepShape(131072, batch=1, length=256, hidden_size=256, layers=8),
]
_LARGE_ON_CUDA = [  # about a billion parameters
    StepShape(32768, batch=4, length=2048, hidden_size=2048, layers=16),
    StepShape(131072, batch=4, length=2048, hidden_size=2048, layers=16),
]
_QUICK = [StepShape(8192, batch=2, length=16, hidden_size=32, layers=2)]


def step_comparisons(
    device: torch.device, dtype: torch.dtype, rounds: int, quick: bool, skipped: dict[str, str]
) -> Iterator[Comparison]:
    """Compare all variants on every shape; `skipped` receives those that did not fit into memory.

    Raises:
        WrongResult: a variant's loss or gradients are wrong.
    """
    errors = {name: check_step(name, variant, device, dtype) for name, variant in STEP_VARIANTS.items()}
    for shape in _QUICK if quick else _LARGE_ON_CUDA if device.type == "cuda" else _LARGE_ON_CPU:
        yield _compare(errors, shape, device, dtype, rounds, skipped)


def check_step(name: str, variant: StepVariant, device: torch.device, dtype: torch.dtype) -> float:
    """Compare a step with the dense form of itself in float32; returns the largest error, relative to the norm.

    Raises:
        WrongResult: the selection is not the exact one, or loss or gradients differ by more than rounding.
    """
    step = TrainingStep(variant, CHECKED, device, dtype)
    result = step.forward_backward()
    found = _gradients(step)
    step.optimizer.zero_grad()

    batch = step.batch
    logits = step.policy.head_logits(batch.input_ids, document_ids=batch.document_ids)
    targets, valid = mtp_targets(batch.input_ids, step.step.horizon, document_ids=batch.document_ids)
    ce = dense_cross_entropy(logits, targets)
    expected = weighted_mtp_loss(ce, result.weights, valid.sum(dim=(0, 1)))
    if variant.has_critic:
        assert batch.rewards is not None
        values = step.policy(batch.input_ids, document_ids=batch.document_ids).values
        losses, counted = lambda_return_losses(values, batch.rewards, 1.0, batch.document_ids)
        expected = expected + VALUE_COEFFICIENT * losses.sum() / counted.sum()
    expected.backward()
    if isinstance(variant.weighting, Rho1Weighting):
        reference_ce = result.inputs.reference_ce
        assert reference_ce is not None
        slack = 1e-4 if dtype == torch.float32 else 0.2
        check_selection(name, result.weights, ce.detach(), reference_ce, valid, slack)
    if isinstance(variant.weighting, UniformWeighting) and not torch.equal(result.weights != 0, valid):
        raise WrongResult(f"{name}: weights that are not uniform")
    return max(
        require_close(f"{name}: loss", result.total.detach(), expected.detach(), TOLERANCE[dtype]),
        require_close(f"{name}: gradient", found, _gradients(step), TOLERANCE[dtype]),
    )


def _gradients(step: TrainingStep) -> Tensor:
    """Return every gradient of the policy in one vector."""
    gradients = [p.grad for p in step.policy.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _compare(
    errors: dict[str, float],
    shape: StepShape,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    skipped: dict[str, str],
) -> Comparison:
    tokens = f"{shape.batch} × {shape.length} tokens"
    title = f"V = {shape.vocab_size}, {tokens}, {shape.horizon} heads on {shape.layers} layers, D = {shape.hidden_size}"
    steps = those_that_fit(_steps(shape, device, dtype), title, skipped)
    peaks: dict[str, int] = {}
    if device.type == "cuda":
        for name, step in steps.items():
            peaks[name] = peak_memory(partial(_as_it_is, step), partial(_as_it_is, step), device)
    elif why_not_measured(device) is None:
        for name in steps:
            prepare = partial(prepare_step, name, device=device, dtype=dtype)
            peaks[name] = peak_memory(partial(prepare, shape=_TINY), partial(prepare, shape=shape), device)
    samples = interleaved(steps, rounds, device)
    measurements = {}
    for name, step in steps.items():
        passes = count_flop(step) / shape.pass_flop
        measurements[name] = Measurement(samples[name], errors[name], peaks.get(name), passes)
    return Comparison("step", title, asdict(shape), asdict(shape), measurements)


def _steps(shape: StepShape, device: torch.device, dtype: torch.dtype) -> dict[str, TrainingStep]:
    """Return a step of every variant. All train one trunk, so its weights go their way during the measurement."""
    steps: dict[str, TrainingStep] = {}
    for name, variant in STEP_VARIANTS.items():
        beside = next(iter(steps.values()), None)
        steps[name] = TrainingStep(variant, shape, device, dtype, beside=beside, attention="auto")
    return steps


def _as_it_is(step: TrainingStep) -> TrainingStep:
    return step


def prepare_step(name: str, shape: StepShape, device: torch.device, dtype: torch.dtype) -> TrainingStep:
    """Return a training step of the variant of that name, with a model of its own."""
    return TrainingStep(STEP_VARIANTS[name], shape, device, dtype)
