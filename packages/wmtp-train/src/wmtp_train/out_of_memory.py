"""What does not fit ends in one line that says what would."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wmtp_core import UserError
from wmtp_train.settings.schema import Settings

# What torch raises as a plain RuntimeError: its allocator of main memory, and CUDA, cuBLAS and NCCL outside its own.
_WORDS = ("DefaultCPUAllocator", "CUDA error: out of memory", "'out of memory'", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the device or of the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextmanager
def explain_out_of_memory(settings: Settings, config: dict[str, Any], world: int) -> Iterator[None]:
    """Turn the end of memory in here into a line of what the run could do about it.

    Args:
        settings: of the run.
        config: DeepSpeed's, as `read_deepspeed_config` returns it.
        world: number of processes.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ways = "; or ".join(ways_out(settings, config, world))
        raise UserError(f"{in_short(error)}: {ways}") from error


@contextmanager
def explain_out_of_memory_without_training(settings: Settings, micro_batch: int, what: str) -> Iterator[None]:
    """Turn the end of memory in here, where nothing is trained, into a line of what takes less.

    Args:
        settings: of the run.
        micro_batch: rows of a forward.
        what: the model, such as "the reference".

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fewer = f"lower train_micro_batch_size_per_gpu ({micro_batch}) in {settings.deepspeed_config}; or "
        raise UserError(
            f"{in_short(error)}: {what} and {micro_batch} rows do not fit: {fewer if micro_batch > 1 else ''}"
            f"shorten data.sequence_length ({settings.data.sequence_length})"
        ) from error


def in_short(error: BaseException) -> str:
    """Return the first sentences of an error, which say how much was asked for and how much there is."""
    words = " ".join(str(error).split()).split(" If reserved but unallocated")[0]
    return f"out of memory ({words[:200].rstrip('. ')})" if words else "out of memory"


def ways_out(settings: Settings, config: dict[str, Any], world: int) -> list[str]:
    """Return what takes less memory and is not in use yet, the cheapest first."""
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    zero = config.get("zero_optimization", {})
    ways = []
    if micro > 1:
        fewer = next(rows for rows in range(micro // 2, 0, -1) if micro % rows == 0)  # the same rows a step
        ways.append(
            f"set train_micro_batch_size_per_gpu to {fewer} and gradient_accumulation_steps to "
            f"{micro * accumulation // fewer} in {settings.deepspeed_config}"
        )
    if not settings.model.gradient_checkpointing:
        ways.append("set model.gradient_checkpointing to true")
    stage = zero.get("stage", 0)
    if stage < 3 and world > 1:
        ways.append(f"take a higher ZeRO stage than {stage}, such as ds_configs/zero3.json")
    if stage > 0 and "offload_optimizer" not in zero and torch.cuda.is_available():
        ways.append(f"offload the optimizer, as ds_configs/zero{max(stage, 2)}_offload.json does")
    return [*ways, f"shorten data.sequence_length ({settings.data.sequence_length})"]
