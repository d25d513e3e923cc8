"""Where figures go: TensorBoard, Weights & Biases, MLflow, a file of JSON lines."""

from collections.abc import Iterable
from importlib.util import find_spec

from wmtp_core import UserError
from wmtp_train.metrics.monitors.base import Monitor
from wmtp_train.metrics.monitors.jsonl import JsonLines
from wmtp_train.metrics.monitors.mlflow import MLflow
from wmtp_train.metrics.monitors.tensorboard import TensorBoard
from wmtp_train.metrics.monitors.wandb import WeightsAndBiases
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings

KINDS: dict[str, type[Monitor]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "jsonl": JsonLines,
}
_LIBRARIES = ("wandb", "mlflow")  # what an extra of the same name installs


class Monitors:
    """Every destination that a run's settings name; none on ranks other than 0, where all calls do nothing."""

    def __init__(self, monitors: Iterable[Monitor] = ()) -> None:
        self._monitors = list(monitors)

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add figures by name at `step`, the number of optimizer steps done."""
        for monitor in self._monitors:
            monitor.write(metrics, step)

    def write_final(self, metrics: dict[str, float], step: int) -> None:
        """Add what an evaluation of the finished run found."""
        for monitor in self._monitors:
            monitor.write_final(metrics, step)

    def close(self, finished: bool) -> None:
        """End all of them; `finished` is False for a run that has stopped before its last step."""
        for monitor in self._monitors:
            monitor.close(finished)


def require_libraries(names: Iterable[str]) -> None:
    """Refuse destinations whose library is missing, without importing any.

    Raises:
        UserError: it names the first, and how to install it.
    """
    for name in names:
        if name in _LIBRARIES:
            spec = find_spec(name)
            if spec is None or spec.origin is None:  # the latter is a folder of that name, such as wandb's own output
                raise UserError(
                    f"monitor names {name}, which is not installed: pip install -e 'packages/wmtp-train[{name}]', "
                    "or leave it out"
                )


def open_monitors(settings: Settings, mesh: Mesh, first_step: int | None) -> Monitors:
    """Open what `settings.monitor` names, on rank 0. Every rank must call it.

    Args:
        settings: of the run.
        mesh: the processes.
        first_step: see `Monitor`.

    Raises:
        UserError: a service cannot be reached, or a file cannot be written.
    """
    names = dict.fromkeys(settings.monitor) if mesh.is_first else ()
    what = f"monitor: figures cannot be written to {settings.output_dir}"
    opened = run_on_all_ranks(mesh, lambda: [KINDS[name](settings, first_step) for name in names], what, START_AGAIN)
    return Monitors(opened)
