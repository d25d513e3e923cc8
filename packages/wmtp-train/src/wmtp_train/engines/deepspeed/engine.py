"""The DeepSpeed engine: its configuration checked, its optimizer and schedule built."""

import difflib
import json
import math
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import Tensor, nn

from wmtp_core import UserError
from wmtp_train.settings.schema import OptimizerSettings

# DeepSpeed ignores an unknown top-level key in silence, so a typing error would train something else.
_KNOWN_KEYS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "bf16", "fp16",
    "torch_autocast", "data_types", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients",
    "communication_data_type", "steps_per_print", "wall_clock_breakdown", "dump_state", "aio", "compile",
    "comms_logger", "flops_profiler", "activation_checkpointing", "checkpoint", "tensorboard", "csv_monitor",
    "memory_breakdown", "seq_parallel_communication_data_type", "disable_allgather",
}  # fmt: skip

_SECTIONS = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}


def read_deepspeed_config(path: Path, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON with its batch sizes completed for this world size.

    Raises:
        UserError: a missing or broken file, an unknown key, batch sizes or precisions that contradict each other, or
            what DeepSpeed is known to compute wrongly.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"deepspeed_config {path}: {str(error.strerror).lower()}; ds_configs holds one per ZeRO stage"
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
            advice = "remove it: figures go to TensorBoard"
        raise UserError(f"deepspeed_config {path}: {key!r} is not used here; {advice}")
    for section in ("zero_optimization", "bf16", "fp16", "torch_autocast"):
        if not isinstance(config.get(section, {}), dict):
            raise UserError(f"deepspeed_config {path}: {section} is {config[section]!r}; give an object, like {{}}")
    clipping = config.get("gradient_clipping", 0)
    if isinstance(clipping, bool) or not isinstance(clipping, int | float) or clipping < 0:
        raise UserError(f"deepspeed_config {path}: gradient_clipping is {clipping!r}; give a norm, or 0 for none")
    for section, model in _SECTIONS.items():
        try:
            model(**config.get(section, {}))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise UserError(f"deepspeed_config {path}: {section}.{name}: {first['msg']}; mend or remove it") from error
    _check_precision(config, path)
    if "offload_optimizer" in config.get("zero_optimization", {}):
        # The optimizer is torch's AdamW wherever its state lies; DeepSpeed's own would be compiled for minutes.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    _complete_batch_sizes(config, path, world_size)
    return config


def build_engine(
    policy: nn.Module, config: dict[str, Any], optimizer: OptimizerSettings, steps: int
) -> DeepSpeedEngine:
    """The engine that owns the policy's parameters, gradients and optimizer state."""
    matrices = [p for p in policy.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in policy.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": parameters, "decays": decays}
        for parameters, decays in ((matrices, True), (vectors, False))
        if parameters  # DeepSpeed drops an empty group, and the schedule would still count it
    ]
    adamw = torch.optim.AdamW(groups, lr=optimizer.learning_rate)
    _apply(optimizer, adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: _learning_rate_factor(step, steps, optimizer))
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=adamw, lr_scheduler=schedule, config=config, dist_init_required=False
    )
    return engine


def backward_and_step(engine: DeepSpeedEngine, loss: Tensor) -> Tensor | None:
    """Add a micro-batch's gradient, and after the last one of a step take that step.

    Returns:
        After the last one, the global norm of the step's gradient before clipping, the same on every rank.
    """
    engine.backward(loss)
    last = engine.is_gradient_accumulation_boundary()
    norm = None
    if last and engine.zero_optimization_stage() == 0:  # DeepSpeed forgets it there, and its step the gradients
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    engine.step()
    return torch.as_tensor(engine.get_global_grad_norm()) if last and norm is None else norm


def apply_optimizer_settings(engine: DeepSpeedEngine, optimizer: OptimizerSettings) -> None:
    """Make the settings of the day count after a checkpoint was loaded, which brought its own."""
    schedule = engine.lr_scheduler
    _apply(optimizer, schedule.optimizer)
    schedule.base_lrs = [optimizer.learning_rate] * len(schedule.base_lrs)
    for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"] = optimizer.learning_rate
        group["lr"] = optimizer.learning_rate * factor(schedule.last_epoch)


def _apply(settings: OptimizerSettings, adamw: torch.optim.Optimizer) -> None:
    for group in adamw.param_groups:
        group.setdefault("decays", group["weight_decay"] > 0)  # a checkpoint of an earlier version does not say it
        group["betas"] = settings.betas
        group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0


def _learning_rate_factor(step: int, steps: int, optimizer: OptimizerSettings) -> float:
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return 1.0
    progress = (step - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return optimizer.final_fraction + (1 - optimizer.final_fraction) * cosine


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
    if stage == 0 and (fp16 or (autocast and config["torch_autocast"].get("dtype") == "float16")):
        # There gradients are scaled when their norm is looked at.
        raise UserError(f"deepspeed_config {path}: float16 is not for ZeRO stage 0; use stage 1, 2 or 3")


def _complete_batch_sizes(config: dict[str, Any], path: Path, world_size: int) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for name in names:
        value = config.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"deepspeed_config {path}: {name} is {value!r}; give a whole number of at least 1")
    total, micro, accumulation = (config.get(name) for name in names)
    if micro is None:
        share = total // (world_size * (accumulation or 1)) if total else 1
        micro = max(1, share)
    if accumulation is None:
        accumulation = max(1, total // (world_size * micro)) if total else 1
    if total is not None and total != micro * accumulation * world_size:
        raise UserError(
            f"deepspeed_config {path}: train_batch_size {total} is not train_micro_batch_size_per_gpu {micro} × "
            f"gradient_accumulation_steps {accumulation} × {world_size} processes; mend one of them or leave it out"
        )
    config.update(zip(names, (micro * accumulation * world_size, micro, accumulation), strict=True))
