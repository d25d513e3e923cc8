"""DeepSpeed's JSON file, checked: DeepSpeed itself passes over what it does not know."""

import difflib
import json
import pkgutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from wmtp_core import UserError

# DeepSpeed ignores an unknown top-level key in silence, so a typing error would train something else.
_KNOWN_KEYS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "bf16", "fp16",
    "torch_autocast", "data_types", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients",
    "communication_data_type", "steps_per_print", "wall_clock_breakdown", "dump_state", "aio", "compile",
    "comms_logger", "flops_profiler", "activation_checkpointing", "checkpoint", "tensorboard", "csv_monitor",
    "memory_breakdown", "sequence_parallel_size", "disable_allgather",
}  # fmt: skip

_AUTOCAST_KEYS = {"enabled", "dtype", "lower_precision_safe_modules"}
_BFLOAT16, _FLOAT16 = {"bfloat16", "torch.bfloat16", "bf16"}, {"float16", "torch.float16", "fp16", "half"}

_SECTIONS = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}


def read_deepspeed_config(path: Path, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON with its batch sizes completed for this world size.

    Raises:
        UserError: a missing or broken file, an unknown key, batch sizes or precisions that contradict each other, or
            what DeepSpeed is known to compute wrongly.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"deepspeed_config {path}: {str(error.strerror).lower()}; the repository's ds_configs/ holds one per ZeRO "
            'stage, and {"train_batch_size": 8} is the shortest'
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"deepspeed_config {path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"deepspeed_config {path}: an object of settings is expected; ds_configs holds examples")
    for key in config.keys() - _KNOWN_KEYS:
        close = difflib.get_close_matches(key, _KNOWN_KEYS, n=1)
        advice = f"did you mean {close[0]!r}?" if close else "remove it"
        if key in ("optimizer", "scheduler"):
            advice = "set learning rate and schedule in the settings, under `optimizer`"
        if key in ("wandb", "comet"):  # where they are not installed, rank 0 alone would end
            advice = "remove it: metrics go to TensorBoard"
        raise UserError(f"deepspeed_config {path}: {key!r} is not used here; {advice}")
    for section in ("zero_optimization", "bf16", "fp16", "torch_autocast"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f"deepspeed_config {path}: {section} is {config[section]!r}; give an object, like {{}}")
    clipping = config.get("gradient_clipping", 0)
    if isinstance(clipping, bool) or not isinstance(clipping, int | float) or clipping < 0:
        raise UserError(f"deepspeed_config {path}: gradient_clipping is {clipping!r}; give a norm, or 0 for none")
    for key in config.get("zero_optimization", {}).keys() & {"mics_shard_size", "mics_hierarchical_params_gather"}:
        raise UserError(
            f"deepspeed_config {path}: zero_optimization.{key}: DeepSpeed has no MiCS any more; "
            "zero_hpz_partition_size keeps weights whole within a node"
        )
    for section, model in _SECTIONS.items():
        try:
            model(**config.get(section, {}))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UserError(f"deepspeed_config {path}: {section}.{name}: {first['msg']}; fix or remove it") from error
    _check_autocast(config.get("torch_autocast", {}), path)
    _check_precision(config, path)
    _check_zero_plus_plus(config, path, world_size)
    if "offload_optimizer" in config.get("zero_optimization", {}):
        # The optimizer is torch's AdamW wherever its state lies; DeepSpeed's own would be compiled for minutes.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    _complete_batch_sizes(config, path, world_size)
    return config


def parameter_dtype(config: dict[str, Any]) -> torch.dtype:
    """Return what the engine holds parameters in under a JSON that `read_deepspeed_config` returned."""
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled", False):
            return dtype
    return torch.float32


def takes_weights_of_rank0(config: dict[str, Any]) -> bool:
    """Return whether a policy can come from rank 0 alone.

    Processes that share rows try that out on the whole model, each by itself. With ZeRO++'s secondary partitions
    DeepSpeed cuts parameters in `initialize` alone.
    """
    secondary: int = config.get("zero_optimization", {}).get("zero_hpz_partition_size", 1)
    return config["sequence_parallel_size"] == 1 and secondary <= 1


def compute_dtype(config: dict[str, Any]) -> torch.dtype:
    """Return what the layers of a policy compute in under a JSON that `read_deepspeed_config` returned."""
    autocast = config.get("torch_autocast", {})
    if not autocast.get("enabled", False):
        return parameter_dtype(config)
    return torch.float16 if autocast.get("dtype") == "float16" else torch.bfloat16


def _check_precision(config: dict[str, Any], path: Path) -> None:
    enabled = {name: config.get(name, {}).get("enabled", False) for name in ("bf16", "fp16", "torch_autocast")}
    for name, value in enabled.items():
        if not isinstance(value, bool):
            raise UserError(f"deepspeed_config {path}: {name}.enabled is {value!r}; give true or false")
    bf16, fp16, autocast = enabled.values()
    stage = DeepSpeedZeroConfig(**config.get("zero_optimization", {})).stage
    if bf16 + fp16 + autocast > 1:
        raise UserError(f"deepspeed_config {path}: more than one of bf16, fp16 and torch_autocast is enabled; keep one")
    if fp16 and not torch.cuda.is_available():
        raise UserError(f"deepspeed_config {path}: fp16 does not train on a CPU; enable bf16, or neither")
    if bf16 and stage == 0:
        raise UserError(f"deepspeed_config {path}: DeepSpeed's bf16 is wrong at ZeRO stage 0; use stage 1, 2 or 3")
    if stage == 0 and (fp16 or (autocast and config["torch_autocast"]["dtype"] in _FLOAT16)):
        # There gradients are scaled when their norm is looked at.
        raise UserError(f"deepspeed_config {path}: float16 is not for ZeRO stage 0; use stage 1, 2 or 3")


def _check_autocast(autocast: dict[str, Any], path: Path) -> None:
    if unknown := sorted(autocast.keys() - _AUTOCAST_KEYS):
        keys = ", ".join(sorted(_AUTOCAST_KEYS))
        raise UserError(f"deepspeed_config {path}: torch_autocast.{unknown[0]} is not used; choose of {keys}")
    if autocast.get("enabled") is True and autocast.get("dtype") not in _BFLOAT16 | _FLOAT16:
        # Without one, torch would take float16 on a GPU, for which DeepSpeed then scales no gradients.
        raise UserError(
            f"deepspeed_config {path}: torch_autocast.dtype is {autocast.get('dtype')!r}; give bfloat16 or float16"
        )
    names = autocast.get("lower_precision_safe_modules") or []
    for name in names if isinstance(names, list) else [names]:
        try:
            pkgutil.resolve_name(name)
        except (TypeError, ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"deepspeed_config {path}: torch_autocast.lower_precision_safe_modules: there is no class {name!r}; "
                "give a list of names like torch.nn.Linear"
            ) from error


def _check_zero_plus_plus(config: dict[str, Any], path: Path, processes: int) -> None:
    zero = DeepSpeedZeroConfig(**config.get("zero_optimization", {}))
    quantized = [
        name
        for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
        if getattr(zero, name)
    ]
    used = quantized + ["zero_hpz_partition_size"] * (zero.zero_hpz_partition_size != 1)
    if used and zero.stage != 3:  # where DeepSpeed passes over them
        raise UserError(f"deepspeed_config {path}: zero_optimization.{used[0]} is for ZeRO stage 3; remove it")
    if quantized and not torch.cuda.is_available():
        raise UserError(f"deepspeed_config {path}: zero_optimization.{quantized[0]} needs CUDA kernels; remove it")
    if quantized and config.get("torch_autocast", {}).get("enabled"):
        raise UserError(
            f"deepspeed_config {path}: zero_optimization.{quantized[0]} does not go with torch_autocast; keep one"
        )
    size = zero.zero_hpz_partition_size
    if size < 1 or (size < processes and processes % size):
        raise UserError(
            f"deepspeed_config {path}: zero_optimization.zero_hpz_partition_size is {size}, which does not divide "
            f"{processes} processes; give the processes of a node"
        )


def _complete_batch_sizes(config: dict[str, Any], path: Path, processes: int) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config.setdefault("sequence_parallel_size", 1)
    for name in (*names, "sequence_parallel_size"):
        value = config.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"deepspeed_config {path}: {name} is {value!r}; give a whole number of at least 1")
    shared = config["sequence_parallel_size"]
    if processes % shared:
        raise UserError(
            f"deepspeed_config {path}: sequence_parallel_size is {shared}, which does not divide {processes} "
            "processes; start a multiple of it, or change it"
        )
    world_size = processes // shared  # processes with rows of their own
    total, micro, accumulation = (config.get(name) for name in names)
    if micro is None:
        share = total // (world_size * (accumulation or 1)) if total else 1
        micro = max(1, share)
    if accumulation is None:
        accumulation = max(1, total // (world_size * micro)) if total else 1
    ranks = f"{world_size} processes{' with rows of their own' if shared > 1 else ''}"
    if total is not None and total != micro * accumulation * world_size:
        raise UserError(
            f"deepspeed_config {path}: train_batch_size {total} is not train_micro_batch_size_per_gpu {micro} × "
            f"gradient_accumulation_steps {accumulation} × {ranks}; fix one of them or leave it out"
        )
    config.update(zip(names, (micro * accumulation * world_size, micro, accumulation), strict=True))
