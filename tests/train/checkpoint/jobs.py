"""What the ranks of a test do with engines and checkpoints; each function is a job for `ranks.on_ranks`."""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed import zero
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor

from wmtp_models import build_policy, train_later_heads
from wmtp_train.checkpoint import load_checkpoint, newest_whole_checkpoint, run_lock, save_checkpoint
from wmtp_train.engines.deepspeed import engine as engine_module
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.settings.sections import OptimizerSettings

ROWS = 4  # of a step, over all ranks
SETTINGS = Settings(seed=7, optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=2))
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}  # to files, as Python's audit names them


def make_engine(model: dict[str, Any], stage: int, mesh: Mesh, seed: int = 0, train: str = "all") -> ZeroEngine:
    policy = build_policy(model, vocab_size=50, horizon=2, value_head=False, seed=seed)
    if train == "heads":
        train_later_heads(policy)
    config = {"train_batch_size": ROWS, "train_micro_batch_size_per_gpu": ROWS // mesh.world}
    config |= {"gradient_accumulation_steps": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    return ZeroEngine(policy, config, SETTINGS.optimizer, 10, mesh)


def fuse_optimizers() -> None:
    """Let the engines of this process have the fused AdamW of an accelerator, which a CPU has too."""
    plain = engine_module.build_optimizer
    engine_module.build_optimizer = lambda *arguments, fused: plain(*arguments, fused=True)


def learn(engine: ZeroEngine, mesh: Mesh, first: int, last: int) -> None:
    """Steps first … last − 1: each on rows of its own, assigned to the ranks in order."""
    for step in range(first, last):
        rows = torch.randint(50, (ROWS, 16), generator=torch.Generator().manual_seed(step))
        engine.backward_and_step(engine(rows.chunk(mesh.world)[mesh.rank]).ce.mean())


def state_of(training: ZeroEngine) -> dict[str, Tensor]:
    """Every weight, and both moments of what learns; whole."""
    engine, stage = training._engine, training.stage
    state = {}
    if stage in (1, 2):  # DeepSpeed links the moments once, when only the first group has had its step
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        with zero.GatheredParameters([parameter], enabled=stage == 3):
            state[name] = parameter.detach().clone()
        if not parameter.requires_grad:
            continue
        if stage:
            state[f"{name}/fp32"] = safe_get_full_fp32_param(parameter).clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"{name}/{moment}"] = (
                safe_get_full_optimizer_state(parameter, moment) if stage else engine.optimizer.state[parameter][moment]
            ).clone()
    return state


def save_after(
    mesh: Mesh, model: dict[str, Any], stage: int, folder: Path, train: str = "all", fused: bool = False
) -> Any:
    """Two steps, a checkpoint, two more: the state then, and at the end."""
    if fused:
        fuse_optimizers()
    engine = make_engine(model, stage, mesh, train=train)
    learn(engine, mesh, 0, 2)
    save_checkpoint(engine, mesh, folder, 2, {}, keep=2)
    saved = state_of(engine)
    learn(engine, mesh, 2, 4)
    return saved, state_of(engine), engine.learning_rate


def go_on(mesh: Mesh, model: dict[str, Any], stage: int, folder: Path, train: str = "all", fused: bool = False) -> Any:
    """The newest checkpoint, in an engine that began elsewhere, and two more steps; then what was drawn."""
    if fused:
        fuse_optimizers()
    engine = make_engine(model, stage, mesh, seed=1, train=train)
    path = newest_whole_checkpoint(folder, mesh)
    load_checkpoint(engine, mesh, path, {}, SETTINGS)
    drawn = torch.rand(3)
    loaded = state_of(engine)
    learn(engine, mesh, 2, 4)
    return loaded, state_of(engine), engine.learning_rate, path.name, drawn


def die_while_saving(mesh: Mesh, model: dict[str, Any], folder: Path, change: int, who: int = 0) -> int:
    """A checkpoint of step 2, and one of step 4 in which SIGKILL comes before rank `who`'s n-th change to a file.

    Returns:
        How many changes there were, where they are fewer than n.
    """
    engine = make_engine(model, 1, mesh)
    learn(engine, mesh, 0, 2)
    save_checkpoint(engine, mesh, folder, 2, {}, keep=1)
    learn(engine, mesh, 2, 4)
    seen = 0

    def count(event: str, arguments: Any) -> None:
        nonlocal seen
        changes = event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == change and mesh.rank == who:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save_checkpoint(engine, mesh, folder, 4, {}, keep=1)
    return seen


def save_on_a_small_disk(mesh: Mesh, model: dict[str, Any], folder: Path, limited: int) -> None:
    """A checkpoint of step 2, and one of step 4 for which rank `limited` may write no more than 20 kB to a file."""
    engine = make_engine(model, 1, mesh)
    learn(engine, mesh, 0, 2)
    save_checkpoint(engine, mesh, folder, 2, {}, keep=1)
    learn(engine, mesh, 2, 4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mesh.rank == limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # Python ignores the signal that goes with it
    try:
        save_checkpoint(engine, mesh, folder, 4, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hold(mesh: Mesh, folder: Path, killed: bool = False) -> str:
    """Hold the folder as a run does, which may end in SIGKILL."""
    with run_lock(folder, mesh):
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return "held"
