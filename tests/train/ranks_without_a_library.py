"""Ranks of which the first cannot import wandb; a job for `ranks.on_ranks`."""

import importlib.util
from unittest.mock import patch

from wmtp_train.algorithms import trainer_class
from wmtp_train.run import Run

_find_spec = importlib.util.find_spec


def open_run(mesh, settings):
    """Open a run, with wandb missing on rank 0 alone."""
    missing = {"wandb"} if mesh.is_first else set()

    def find_spec(name, package=None):
        return None if name in missing else _find_spec(name, package)

    with patch("wmtp_train.metrics.monitors.find_spec", find_spec):
        Run.open(settings, trainer_class(settings.algo).algorithm, mesh)
