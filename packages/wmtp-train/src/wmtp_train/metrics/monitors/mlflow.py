"""MLflow (https://mlflow.org/docs/latest/ml/tracking), through its own library."""

import os
import re
import sys
import time
from typing import Any

from wmtp_core import UserError
from wmtp_train.metrics.monitors.base import Monitor, keep_run_id, read_run_id
from wmtp_train.settings.diff import leaves
from wmtp_train.settings.schema import Settings

_FIGURES, _PARAMETERS = 1000, 100  # that MLflow takes in one request


class MLflow(Monitor):
    """A run of MLflow, whose id `output_dir/mlflow/run_id` keeps: a resumed run goes on in it.

    The settings of its first start are its parameters, which MLflow never changes. A server that does not answer ends
    no training: figures are kept and sent with the next ones, and a warning says so.

    Raises:
        UserError: the tracking server or store cannot be used, or does not know the run that is resumed.
    """

    def __init__(self, settings: Settings, first_step: int | None) -> None:
        # All ranks wait for a write: MLflow's own patience is longer than theirs. What fails is sent again anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric, self._error = Metric, mlflow.exceptions.MlflowException
        self._owed: list[Any] = []
        known = settings.output_dir / "mlflow" / "run_id"
        run_id = read_run_id(known, first_step)
        try:
            self._client = mlflow.MlflowClient()
            if run_id is None:
                experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "wmtp")).experiment_id
                run_id = self._client.create_run(experiment, run_name=str(settings.output_dir)).info.run_id
                parameters = leaves(settings.model_dump(mode="json")).items()
                given = [Param(_name(name), str(value)) for name, value in parameters]
                for start in range(0, len(given), _PARAMETERS):
                    self._client.log_batch(run_id, params=given[start : start + _PARAMETERS])
            else:
                self._client.update_run(run_id, status="RUNNING")
        except self._error as error:
            raise UserError(
                f"monitor: mlflow: {' '.join(str(error).split())}: set MLFLOW_TRACKING_URI to a server or to "
                f"sqlite:///FILE, remove {known.parent} to start another run there, or leave mlflow out"
            ) from error
        self._run_id: str = run_id
        keep_run_id(known, run_id)

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Send the figures, and those that could not be sent before."""
        now = int(time.time() * 1000)
        self._owed += [self._metric(_name(name), value, now, step) for name, value in metrics.items()]
        try:
            while self._owed:
                self._client.log_batch(self._run_id, metrics=self._owed[:_FIGURES])
                del self._owed[:_FIGURES]
        except self._error as error:
            _warn(f"{len(self._owed)} figures up to step {step} are not sent yet: {error}")

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        try:
            self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")
        except self._error as error:
            _warn(f"the run is not closed, and {len(self._owed)} figures are lost: {error}")


def _name(name: str) -> str:
    return re.sub(r"[^\w.\-: /]", "_", name)  # what MLflow allows in names; pass@1 is not


def _warn(what: str) -> None:
    print(f"warning: mlflow: {' '.join(what.split())}", file=sys.stderr, flush=True)
