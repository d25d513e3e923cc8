"""Weights & Biases (https://docs.wandb.ai), through its own library."""

import os

from wmtp_core import UserError
from wmtp_train.metrics.monitors.base import Monitor, keep_run_id, read_run_id
from wmtp_train.settings.schema import Settings


class WeightsAndBiases(Monitor):
    """A run of Weights & Biases, whose id `output_dir/wandb/run_id` keeps: a resumed run goes on in it.

    Its charts have our "step" as their axis. Under wandb's own, which only grows, a run that goes back to a checkpoint
    would lose all figures up to where it had been.

    Raises:
        UserError: the service cannot be reached or knows no such user.
    """

    def __init__(self, settings: Settings, first_step: int | None) -> None:
        import wandb

        folder = settings.output_dir
        known = folder / "wandb" / "run_id"
        known.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "wmtp"),
                name=os.environ.get("WANDB_NAME", str(folder)),
                id=read_run_id(known, first_step),
                resume="allow",
                dir=folder,
                config=settings.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise UserError(
                f"monitor: wandb: {' '.join(str(error).split())}: `wandb login`, or WANDB_MODE=offline in the "
                "environment, or leave wandb out"
            ) from error
        keep_run_id(known, self._run.id)
        self._run.define_metric("*", step_metric="step")

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Hand the figures to wandb's own process, which waits for no network here."""
        self._run.log({"step": step, **metrics})

    def close(self, finished: bool) -> None:
        """Say how the run ended, and wait until all is sent; offline, until it is on the disk."""
        self._run.finish(exit_code=0 if finished else 1)
