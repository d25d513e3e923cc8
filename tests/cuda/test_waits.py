"""Between two logs nothing waits for the device. Torch itself tells, which it can on CUDA alone."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import pytest
import torch

from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS, TrainingStep
from wmtp_train.algorithms import trainer_class

pytestmark = pytest.mark.cuda
SHAPE = StepShape(vocab_size=3001, batch=2, length=64, hidden_size=64, layers=2)
DEEPSPEED = str(Path(deepspeed.__file__).parent)


@contextmanager
def watched(device: torch.device, mode: str) -> Iterator[None]:
    """Torch raises an error, or warns, where the host waits."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name, variant in STEP_VARIANTS.items() if not variant.dense])
def test_a_step_of_ours_waits_for_nothing(device, name, dtype):
    step = TrainingStep(STEP_VARIANTS[name], SHAPE, device, dtype)
    for _ in range(2):  # kernels are compiled, and the optimizer makes its state
        step()
    with watched(device, "error"):
        for _ in range(2):
            step()


@pytest.mark.parametrize(
    ("algo", "stage"),
    [*(("rho1-wmtp", s) for s in (1, 2, 3)), *((a, 2) for a in ("mtp-baseline", "critic-wmtp", "random"))],
)
def test_between_two_logs_only_deepspeed_waits(device, processes, make_settings, write_deepspeed, algo, stage):
    config = write_deepspeed(stage=stage, gradient_clipping=1.0, bf16={"enabled": True})
    changes = {"critic": {"value_warmup_steps": 1}, "log_every": 100, "steps": 100, "data": {"evaluate": {}}}
    settings = make_settings(algo=algo, deepspeed_config=config, **changes)
    trainer = trainer_class(algo)(settings, processes)
    loop, run = trainer.loop, trainer.run
    loop.batches = run.train.training_batches(processes, run.micro_batch, settings.seed, {})
    loop.interval_steps = 0
    for _ in range(3):
        loop.train_step()
    with warnings.catch_warnings(record=True) as caught, watched(device, "warn"):
        warnings.simplefilter("always")
        for _ in range(2):
            loop.train_step()
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    print("\n".join(sorted(set(waits))))  # of DeepSpeed's, pytest -rP shows them
    assert [wait for wait in waits if not wait.startswith(DEEPSPEED)] == []
