"""The benchmark of the loss op, forward and backward."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.comparison import Comparison, Measurement, those_that_fit
from benchmarks.equality import check_loss_variant
from benchmarks.loss_variants import LossResult, LossVariant, loss_variants, share_hinted_wrong
from benchmarks.problems import LossProblem, LossShape, make_loss_problem
from wmtp_lab.measure.flop import count_flop
from wmtp_lab.measure.memory import peak_memory, why_not_measured
from wmtp_lab.measure.stopwatch import interleaved

# The vocabulary is large enough for our op to work in more than one chunk.
CHECKED = LossShape(vocab_size=131072, positions=48, hidden_size=32)
_TINY = LossShape(vocab_size=512, positions=16, hidden_size=16)
_LARGE_ON_CPU = [LossShape(8192, 1024, 512), LossShape(32768, 512, 512), LossShape(131072, 128, 512)]
_LARGE_ON_CUDA = [LossShape(32768, 8192, 2048), LossShape(131072, 8192, 2048)]
_QUICK = [LossShape(8192, 32, 32)]
# A CPU takes long for the positions of a real batch; once, for the memory, it can.
_MEMORY_POSITIONS_ON_CPU = {8192: 4096, 32768: 4096, 131072: 512}


def loss_comparisons(
    device: torch.device, dtype: torch.dtype, rounds: int, quick: bool, skipped: dict[str, str]
) -> Iterator[Comparison]:
    """Compare all variants that there are on every shape; `skipped` receives which were left out, and why.

    Raises:
        WrongResult: one of ours, or the naive form, is wrong.
    """
    variants, unavailable = loss_variants(device)
    skipped.update(unavailable)
    errors = {}
    for name, variant in list(variants.items()):
        try:
            errors[name] = check_loss_variant(variant, make_loss_problem(CHECKED, device, dtype))
        except Exception as error:  # a peer may fail in any way of its own: it is left out, and the reason is printed
            if not variant.is_peer:
                raise
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            del variants[name]
    for shape in _QUICK if quick else _LARGE_ON_CUDA if device.type == "cuda" else _LARGE_ON_CPU:
        positions = shape.positions
        if device.type == "cpu" and not quick:
            positions = _MEMORY_POSITIONS_ON_CPU[shape.vocab_size]
        yield _compare(variants, errors, shape, replace(shape, positions=positions), device, dtype, rounds, skipped)


def _compare(
    variants: dict[str, LossVariant],
    errors: dict[str, float],
    shape: LossShape,
    memory_shape: LossShape,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    skipped: dict[str, str],
) -> Comparison:
    title = f"V = {shape.vocab_size}, {shape.positions} positions × {shape.horizon} heads, D = {shape.hidden_size}"
    problem = make_loss_problem(shape, device, dtype)
    operations: dict[str, Callable[[], LossResult]] = {name: partial(v, problem) for name, v in variants.items()}
    operations = those_that_fit(operations, title, skipped)
    peaks: dict[str, int] = {}
    if device.type == "cuda":  # in this process, and so on the problem that is there
        for name, operation in operations.items():
            here = partial(_without_gradients, problem, operation)
            peaks[name] = peak_memory(here, here, device)
    elif why_not_measured(device) is None:
        for name in operations:
            prepare = partial(prepare_loss, name, device=device, dtype=dtype)
            peaks[name] = peak_memory(partial(prepare, shape=_TINY), partial(prepare, shape=memory_shape), device)
    samples = interleaved(operations, rounds, device)
    measurements = {}
    for name in operations:
        variant = variants[name]
        measurements[name] = Measurement(samples[name], errors[name], peaks.get(name))
        if not variant.is_peer:
            flop, hinted_wrong = inspect(variant, problem)
            measurements[name] = replace(
                measurements[name], pass_flop=flop / shape.pass_flop, hinted_wrong=hinted_wrong
            )
    return Comparison("loss", title, asdict(shape), asdict(memory_shape), measurements)


def _without_gradients(problem: LossProblem, operation: Callable[[], LossResult]) -> Callable[[], LossResult]:
    """Return the operation, on a problem that holds no gradients of another one."""
    problem.hidden.grad = problem.weight.grad = None
    return operation


def prepare_loss(name: str, shape: LossShape, device: torch.device, dtype: torch.dtype) -> Callable[[], LossResult]:
    """Return a problem of that shape and the variant of that name, to be run on it."""
    return partial(loss_variants(device)[0][name], make_loss_problem(shape, device, dtype))


def inspect(variant: LossVariant, problem: LossProblem) -> tuple[int, float | None]:
    """Return FLOP of one run's matrix products, and the share hinted wrong, None where the variant does not hint.

    A peer hides its products in operators of its own, so its count would be too low.
    """
    shares: list[float | None] = []
    return count_flop(lambda: shares.append(share_hinted_wrong(variant, problem))), shares[0]
