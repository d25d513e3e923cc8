"""The engine port on DeepSpeed's ZeRO."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import zero
from torch import Tensor

from wmtp_models import MtpForCausalLM, MtpOutput, ReferenceModel
from wmtp_train.engines.deepspeed.gradient_norm import DeviceNorm, norm_stays_on_device, without_norm
from wmtp_train.engines.deepspeed.placing import place_parameters
from wmtp_train.engines.deepspeed.universal import load_resharded
from wmtp_train.engines.deepspeed.unpickling import known_types_only
from wmtp_train.engines.deepspeed.writer import save_deferring_errors
from wmtp_train.engines.optimizer import apply_settings, build_optimizer
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.sections import OptimizerSettings

_NO_TIMER = {"timers": {"throughput": {"enabled": False}}}
"""Without it DeepSpeed synchronizes the device before every forward and after every step, for a figure in its log."""


class ZeroEngine:
    """Parameters, gradients and optimizer state under DeepSpeed; see `engines.base.Engine` for each member.

    Args:
        policy: the model; DeepSpeed moves it to the mesh's device. Ranks other than 0 may hold a skeleton of it.
        config: DeepSpeed's, as `read_deepspeed_config` returns it.
        optimizer: AdamW's settings.
        steps: of the whole run, for the learning-rate schedule.
        mesh: the processes.
    """

    def __init__(
        self, policy: MtpForCausalLM, config: dict[str, Any], optimizer: OptimizerSettings, steps: int, mesh: Mesh
    ) -> None:
        adamw, schedule = build_optimizer(policy, optimizer, steps, fused=mesh.device.type != "cpu")
        ours = norm_stays_on_device(config)
        # To it every process is data-parallel: gradients of slices of a row add up as those of rows do. It completes
        # the batch size by its own count of ranks.
        config = dict(config)
        if config.pop("sequence_parallel_size", 1) > 1:
            del config["train_batch_size"]
        place_parameters(policy, config, mesh)
        self._engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=adamw,
            lr_scheduler=schedule,
            config=_NO_TIMER | (without_norm(config) if ours else config),
            dist_init_required=False,
        )
        self._norm = DeviceNorm(self._engine, adamw, config) if ours else None
        self.policy, self._mesh = policy, mesh
        self.group: dist.ProcessGroup = self._engine.data_parallel_group
        self.stage: int = self._engine.zero_optimization_stage()
        self.skips_overflow: bool = self._engine.fp16_enabled()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        rate: float = self._engine.get_lr()[0]
        return rate

    def __call__(self, *args: Any, **kwargs: Any) -> MtpOutput:
        """Run the policy's forward."""
        output: MtpOutput = self._engine(*args, **kwargs)
        return output

    def train(self) -> None:
        """Put the policy into training mode."""
        self._engine.train()

    def backward_and_step(self, loss: Tensor) -> Tensor | None:
        """Add a micro-batch's gradient, and take the step after the last; returns the gradient's norm then."""
        engine = self._engine
        engine.backward(loss)
        last = engine.is_gradient_accumulation_boundary()
        norm = self._norm.compute() if last and self._norm is not None else None
        engine.step()
        return torch.as_tensor(engine.get_global_grad_norm()) if last and norm is None else norm

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return every parameter and saved buffer on rank 0's CPU; without parameters elsewhere."""
        state = {}
        for name, parameter in self.policy.named_parameters():
            # One parameter at a time: ZeRO-3's shards meet on rank 0 without the whole model on any device.
            with zero.GatheredParameters([parameter], enabled=self.stage == 3):
                if self._mesh.is_first:
                    state[name] = parameter.detach().cpu().clone()
        saved = self.policy.state_dict()
        return state | {name: buffer.cpu() for name, buffer in self.policy.named_buffers() if name in saved}

    def save(self, folder: Path) -> list[OSError]:
        """Write this rank's state into a folder that is there; returns what could not be written."""
        return save_deferring_errors(self._engine, folder)

    def load(self, folder: Path, saved_world: int, optimizer: OptimizerSettings) -> None:
        """Load what `saved_world` processes saved, and let the current optimizer settings count.

        Raises:
            UserError: a file holds more than data.
        """
        with known_types_only(folder), nullcontext() if self._norm is None else self._norm.loading():
            if saved_world == self._mesh.world or self.stage == 0:  # at stage 0 every rank loads everything
                loaded, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
                assert loaded is not None, "DeepSpeed only warns of a checkpoint that it cannot load"
            else:
                load_resharded(self._engine, folder, saved_world, self._mesh)
        apply_settings(self._engine.lr_scheduler, optimizer)


def shard_reference(reference: ReferenceModel) -> ReferenceModel:
    """Leave each process its part of a frozen reference's parameters, by ZeRO-3. Every rank must call it.

    Hooks on its modules gather the whole around their forward, so every rank must ask for losses equally often.
    """
    # DeepSpeed expects a batch size; without an optimizer, parameters keep the dtype that they have.
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    deepspeed.initialize(model=reference, config=config, dist_init_required=False)
    return reference
