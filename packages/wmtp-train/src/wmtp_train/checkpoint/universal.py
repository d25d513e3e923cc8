"""A checkpoint of one number of processes for another: DeepSpeed's universal checkpoint, made for the load and removed.

Paper: Lian et al., Universal Checkpointing, arXiv 2406.18820. It holds the float32 weight, both moments and the step
of every parameter whole, so that any number of ranks cuts its own share from them: nothing is rounded.
"""

import argparse
import contextlib
import io
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_train.together import on_rank_0


def load_on_another_world(engine: DeepSpeedEngine, path: Path) -> None:
    """Load what another number of processes saved, at ZeRO stage 1, 2 or 3. Every rank must call it."""
    universal = path.with_name(f".{path.name}.universal.partial")
    try:
        on_rank_0(lambda: _convert(path, universal), f"checkpoint {path} cannot be converted to another world size")
        engine._config.load_universal_checkpoint = True  # read at each load, like `checkpoint: {load_universal: true}`
        engine.load_checkpoint(str(universal.parent), tag=universal.name)
        if engine.zero_optimization_stage() == 3:
            _mend_optimizer(engine.optimizer.optimizer, universal)
        dist.barrier()
    finally:
        engine._config.load_universal_checkpoint = False
        if dist.get_rank() == 0:
            shutil.rmtree(universal, ignore_errors=True)


def _mend_optimizer(optimizer: torch.optim.Optimizer, universal: Path) -> None:
    """Undo what DeepSpeed's load does to an optimizer of several groups at stage 3.

    It gives all of them the first one's settings, so that vectors would decay; and all parameters one and the same
    counter of steps, which each of them would advance.
    """
    saved = torch.load(universal / "zero" / "optimizer_state.pt", weights_only=False, mmap=True)["param_groups"]
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
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    (universal.parent / "latest_universal").unlink()  # it names a folder that is gone after the load
