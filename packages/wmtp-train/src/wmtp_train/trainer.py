"""Trainers: an algorithm, and the run and loop that every algorithm shares."""

from typing import ClassVar

from wmtp_train.algorithm import Algorithm
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.loop import Loop
from wmtp_train.out_of_memory import explain_out_of_memory
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
        self.run = run = Run.open(settings, self.algorithm, mesh)
        with explain_out_of_memory(settings, run.engine_config, mesh.world):
            engine = ZeroEngine(run.policy, run.engine_config, settings.optimizer, run.settings.steps, run.mesh)
            self.loop = Loop(run, engine)

    def train(self) -> dict[str, float]:
        """Train to the end; returns the final held-out metrics by `set/metric`, see `Loop.train`.

        Raises:
            UserError: as `Loop.train` does; or memory ran out, and the line says what takes less.
        """
        with explain_out_of_memory(self.run.settings, self.run.engine_config, self.run.mesh.world):
            return self.loop.train()
