"""How DeepSpeed's files get to the disk: with the operating system's own error, and with every rank told of it."""

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_train.atomic_io import write_tensors


def save_deferring_errors(engine: DeepSpeedEngine, folder: Path) -> list[OSError]:
    """Save an engine's state into `folder`, and reach the last barrier of that on a rank that cannot write, too.

    Returns:
        What could not be written on this rank.
    """
    errors: list[OSError] = []
    usual = engine.checkpoint_engine
    engine.checkpoint_engine = _DeferredErrorEngine(errors)
    engine._copy_recovery_script = lambda _: None  # files that no one here reads, and rank 0 may fail to write them
    try:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    finally:
        engine.checkpoint_engine = usual
        del engine._copy_recovery_script
    return errors


class _DeferredErrorEngine(TorchCheckpointEngine):
    def __init__(self, errors: list[OSError]) -> None:
        super().__init__()
        self.errors = errors

    def save(self, state_dict: Any, path: str) -> None:
        try:
            write_tensors(state_dict, Path(path))
        except OSError as error:
            self.errors.append(error)
