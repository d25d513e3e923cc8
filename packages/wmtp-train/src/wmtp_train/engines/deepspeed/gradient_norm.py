"""The norm of a step's gradient, and clipping by it, on the device alone.

DeepSpeed reads the norm on the host to leave out a step where it is not finite, several times a step if it clips. Here
a gradient that is not finite ends the run at the next log or save, so nobody has to wait for it. The arithmetic is
DeepSpeed's own, to the bit.

It remains DeepSpeed's where a step has to be left out (float16 and its loss scale), where the gradient lies elsewhere
(offloaded, or ZeRO-3), and at stage 1 in bfloat16, whose optimizer cannot do without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed import comm
from deepspeed.runtime.constants import GRADIENT_CLIPPING_DEFAULT
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

_EPSILON = 1e-6


def norm_stays_on_device(config: dict[str, Any]) -> bool:
    """Return whether the norm is ours to compute under DeepSpeed's settings, and not DeepSpeed's."""

    def enabled(section: str) -> bool:
        return bool(config.get(section, {}).get("enabled", False))

    zero = config.get("zero_optimization", {})
    float16 = enabled("fp16") or (enabled("torch_autocast") and config["torch_autocast"].get("dtype") == "float16")
    stage = zero.get("stage", 0)
    return not (float16 or "offload_optimizer" in zero or stage == 3 or (stage == 1 and enabled("bf16")))


def without_norm(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with which DeepSpeed neither computes a norm nor clips nor looks for an overflow."""
    changed = {**config, "gradient_clipping": 0.0}
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0):
        changed["zero_optimization"] = {**zero, "compute_grad_norm": False}
    if "bf16" in config:
        changed["bf16"] = {**config["bf16"], "check_grad_overflow": False}
    return changed


class DeviceNorm:
    """Computes the norm after a step's last backward, and clips in the step.

    Args:
        engine: made with the settings of `without_norm`, at ZeRO stage 0, 1 or 2.
        optimizer: torch's, in the engine.
        config: DeepSpeed's settings, with the clipping that is wanted.
    """

    def __init__(self, engine: DeepSpeedEngine, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> None:
        self._engine, self._sharded = engine, engine.zero_optimization_stage() > 0
        self._largest: float = config.get("gradient_clipping", GRADIENT_CLIPPING_DEFAULT)
        if self._largest > 0:
            optimizer.register_step_pre_hook(self._clip)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Return the global norm of the gradient, float32 scalar, the same on every rank; the next step clips by it."""
        if self._sharded:
            zero = self._engine.optimizer
            squares = torch.stack(
                [self._sum_of_squares(part, torch.float64) for part in zero.averaged_gradients.values()]
            )
            comm.all_reduce(squares, group=zero.dp_process_group)
            self._norm = torch.linalg.vector_norm(squares.pow(0.5))
        else:
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            self._norm = self._sum_of_squares(gradients, torch.float32).pow(0.5)
        return self._norm

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Let a checkpoint load whose own clipping was DeepSpeed's."""
        zero = self._engine.optimizer
        if self._sharded:
            zero.compute_grad_norm = True
        yield
        if self._sharded:
            zero.compute_grad_norm, zero.clip_grad = False, 0.0

    def _sum_of_squares(self, gradients: list[Tensor], dtype: torch.dtype) -> Tensor:
        norms = [torch.linalg.vector_norm(g, dtype=dtype) for g in gradients if not getattr(g, "_zero_padding", False)]
        if not norms:  # a rank whose share is padding
            return torch.zeros((), device=self._engine.device)
        return torch.stack(norms).pow(2).sum().float()

    def _clip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._sharded:
            factor = 1.0 / ((self._norm + _EPSILON) / self._largest).clamp(min=1.0)
        else:
            factor = (self._largest / (self._norm + _EPSILON)).clamp(max=1.0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, factor)
