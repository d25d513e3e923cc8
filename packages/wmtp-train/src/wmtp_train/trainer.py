"""Trainers: an algorithm, and the run and loop that every algorithm shares."""

from typing import ClassVar

from wmtp_train.algorithm import Algorithm
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.loop import Loop
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.run import Run
from wmtp_train.settings.schema import Settings


class BaseWmtpTrainer:
    """Opens the run that settings name, and trains it. A subclass says which `algorithm`, and nothing else.

    Args:
        settings: the run's.
        mesh: of `start_processes`.

    Raises:
        UserError: whatever in settings, data or models the user can fix; before anything is written.
    """

    algorithm: ClassVar[Algorithm]

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self.run = Run.open(settings, self.algorithm, mesh)
        engine = ZeroEngine(self.run.policy, self.run.engine_config, settings.optimizer, settings.steps, self.run.mesh)
        self.loop = Loop(self.run, engine)

    def train(self) -> dict[str, float]:
        """Train to the end; returns the final held-out metrics by `set/metric`, see `Loop.train`."""
        return self.loop.train()
