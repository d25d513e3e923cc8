"""How tensors get to the disk: through, with the operating system's own error, and with every rank told of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine


def write_tensors(state: Any, path: Path) -> None:
    """`torch.save` that is on the disk on return.

    Raises:
        OSError: no room, no permission, …; torch itself tells of a misplaced write instead.
    """
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refused, OSError):
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


@contextmanager
def deferred_write_errors(engine: DeepSpeedEngine) -> Iterator[list[OSError]]:
    """Lets the engine's save reach its last barrier on a rank that cannot write; what failed is in the list."""
    failures: list[OSError] = []
    usual = engine.checkpoint_engine
    engine.checkpoint_engine = _DeferredErrorEngine(failures)
    engine._copy_recovery_script = lambda _: None  # files that no one here reads, and rank 0 may fail to write them
    try:
        yield failures
    finally:
        engine.checkpoint_engine = usual
        del engine._copy_recovery_script


class _DeferredErrorEngine(TorchCheckpointEngine):
    def __init__(self, failures: list[OSError]) -> None:
        super().__init__()
        self.failures = failures

    def save(self, state_dict: Any, path: str) -> None:
        try:
            write_tensors(state_dict, Path(path))
        except OSError as error:
            self.failures.append(error)
