"""The engine's port: what the rest of the house asks of whatever owns parameters, gradients and optimizer state."""

from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from wmtp_models import MtpForCausalLM, MtpOutput
from wmtp_train.settings.sections import OptimizerSettings


class Engine(Protocol):
    """A policy in training. Every rank holds one, and calls it in step with the others.

    Attributes:
        policy: the model, whose parameters the engine may hold in parts.
        group: in which the engine's own collectives run.
        stage: how its state is split over the ranks; a checkpoint of another stage is refused.
        skips_overflow: a step whose gradient overflows is left out and not an error, as with a loss scale.
    """

    policy: MtpForCausalLM
    group: dist.ProcessGroup
    stage: int
    skips_overflow: bool

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> MtpOutput:
        """Run the policy's forward."""
        ...

    def train(self) -> None:
        """Put the policy into training mode."""
        ...

    def backward_and_step(self, loss: Tensor) -> Tensor | None:
        """Add a micro-batch's gradient, averaged over ranks and micro-batches; after a step's last one take the step.

        Returns:
            After the last one, the global norm of the step's gradient before clipping, the same on every rank.
        """
        ...

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return every parameter and saved buffer on rank 0's CPU; without parameters elsewhere."""
        ...

    def save(self, folder: Path) -> list[OSError]:
        """Write this rank's state into a folder that is there; returns what could not be written."""
        ...

    def load(self, folder: Path, saved_world: int, optimizer: OptimizerSettings) -> None:
        """Load what `saved_world` processes saved, and let the current optimizer settings count."""
        ...
