"""AdamW and its learning rate over the steps of a run."""

import math

import torch
from torch import nn

from wmtp_train.settings.sections import OptimizerSettings


def build_optimizer(
    policy: nn.Module, settings: OptimizerSettings, steps: int, fused: bool
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Return the optimizer of every parameter that learns, matrices decaying and vectors not, and its schedule.

    Args:
        policy: whose parameters learn.
        settings: of AdamW.
        steps: of the whole run.
        fused: do a step of each parameter in one kernel and in place. Otherwise an accelerator would take torch's
            `foreach` form, which gains nothing where ZeRO has made one flat tensor of a group, and whose intermediate
            results are each as large as that. On a CPU it rounds otherwise than torch's plain form.
    """
    matrices = [p for p in policy.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in policy.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": parameters, "decays": decays}
        for parameters, decays in ((matrices, True), (vectors, False))
        if parameters  # DeepSpeed drops an empty group, and the schedule would still count it
    ]
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused or None)
    _apply(settings, adamw)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: learning_rate_factor(step, steps, settings))
    return adamw, schedule


def apply_settings(schedule: torch.optim.lr_scheduler.LambdaLR, settings: OptimizerSettings) -> None:
    """Let the current settings count after a checkpoint was loaded, which brought its own."""
    _apply(settings, schedule.optimizer)
    schedule.base_lrs = [settings.learning_rate] * len(schedule.base_lrs)
    for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"] = settings.learning_rate
        group["lr"] = settings.learning_rate * factor(schedule.last_epoch)
    fused = schedule.optimizer.defaults["fused"]
    for parameter, state in schedule.optimizer.state.items():
        # The fused form counts steps where the parameter lies, and torch's plain one on the CPU.
        place = parameter.device if fused else torch.device("cpu")
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=place)


def learning_rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Return the learning rate of a step (from 0) as a fraction of the peak: linear warm-up, then the schedule."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return settings.final_fraction + (1 - settings.final_fraction) * cosine


def _apply(settings: OptimizerSettings, adamw: torch.optim.Optimizer) -> None:
    for group in adamw.param_groups:
        group["fused"] = adamw.defaults["fused"]  # and not what the device had that a checkpoint comes from
        group["betas"] = settings.betas
        group["weight_decay"] = settings.weight_decay if group["decays"] else 0.0
