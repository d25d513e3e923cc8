"""A checkpoint of one number of processes for another: DeepSpeed's universal checkpoint, made for the load and removed.

Paper: Lian et al., Universal Checkpointing, arXiv 2406.18820. It holds the float32 weight, both moments and the step
of every parameter that learns, whole, so that any number of ranks cuts its own share from them: nothing is rounded.
What does not learn is in no optimizer, and is loaded here.
"""

import argparse
import contextlib
import io
import shutil
from pathlib import Path

import torch
from deepspeed import zero
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_train.ranks.collective import run_on_rank0
from wmtp_train.ranks.mesh import Mesh

# What torch raises when the disk is full, where it opened the file itself.
_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter")


def load_resharded(engine: DeepSpeedEngine, path: Path, saved_world: int, mesh: Mesh) -> None:
    """Load what `saved_world` processes saved, at ZeRO stage 1, 2 or 3. Every rank must call it."""
    universal = path.with_name(f".{path.name}.universal.partial")
    try:
        run_on_rank0(
            mesh, lambda: _convert(path, universal), f"checkpoint {path} cannot be converted to another world size"
        )
        engine._config.load_universal_checkpoint = True  # read at each load, like `checkpoint: {load_universal: true}`
        loaded, _ = engine.load_checkpoint(str(universal.parent), tag=universal.name)
        assert loaded is not None, "DeepSpeed only warns of a checkpoint that it cannot load"
        _load_frozen(engine, path, saved_world, mesh)
        if engine.zero_optimization_stage() == 3:
            _fix_optimizer_state(engine.optimizer.optimizer, universal)
        mesh.barrier()
    finally:
        engine._config.load_universal_checkpoint = False
        if mesh.is_first:
            shutil.rmtree(universal, ignore_errors=True)


@torch.no_grad()
def _load_frozen(engine: DeepSpeedEngine, path: Path, saved_world: int, mesh: Mesh) -> None:
    """Load frozen parameters and saved buffers, which a universal load leaves as they are."""
    sharded = engine.zero_optimization_stage() == 3
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(saved_world)]
    states = [
        torch.load(path / name, map_location="cpu", mmap=True)
        for name in (names if sharded else ["mp_rank_00_model_states.pt"])
    ]
    saved = states[0]["module"]
    for name, buffer in engine.module.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if not sharded:
            parameter.copy_(saved[name])
            continue
        parts = torch.cat([state["frozen_param_fragments"][name] for state in states])  # and padding
        with zero.GatheredParameters([parameter], modifier_rank=0):
            if mesh.is_first:
                parameter.copy_(parts[: parameter.numel()].view_as(parameter))


def _fix_optimizer_state(optimizer: torch.optim.Optimizer, universal: Path) -> None:
    """Undo what DeepSpeed's load does to an optimizer of several groups at stage 3.

    It gives all of them the first one's settings, so that vectors would decay; and all parameters one and the same
    counter of steps, which each of them would advance.
    """
    saved = torch.load(universal / "zero" / "optimizer_state.pt", mmap=True)["param_groups"]
    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in settings.items() if name != "params"})
    for state in optimizer.state.values():
        state["step"] = state["step"].clone()


def _convert(path: Path, universal: Path) -> None:
    shutil.rmtree(universal, ignore_errors=True)
    options = argparse.Namespace(
        input_folder=str(path),
        output_folder=str(universal),
        num_extract_workers=1,  # forks of a process with collectives are not safe
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    except RuntimeError as error:
        if not any(words in str(error) for words in _CANNOT_WRITE):
            raise
        raise OSError(f"{universal}: not all could be written, as on a full disk") from error
    (universal.parent / "latest_universal").unlink()  # it names a folder that is gone after the load
