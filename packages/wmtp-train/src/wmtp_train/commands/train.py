"""Train: `wmtp train --algo rho1-wmtp --config … --deepspeed_config …`.

`--help` lists every setting; `--tiny` is a complete small run that needs nothing before it.
"""

from wmtp_train.algorithms import trainer_class
from wmtp_train.commands.tiny import TINY_CONFIG, prepare_tiny
from wmtp_train.metrics.table import metrics_table
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.consistency import check_settings_match
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.ranks.preemption import catch_stop_signals
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer


def start() -> None:
    """Run the command and end the process."""
    with catch_stop_signals():
        run(main)


def main() -> None:
    """Read the settings, build the trainer that they name, and run it."""
    mesh = start_processes()  # first, so that what is wrong with the settings is said once

    def read() -> tuple[Settings, type[BaseWmtpTrainer]]:
        settings = load_settings(tiny_config=TINY_CONFIG)
        return settings, trainer_class(settings.algo)

    settings, trainer = run_on_all_ranks(mesh, read, "config", START_AGAIN)
    check_settings_match(settings, mesh)
    if settings.tiny:
        needs_reference = trainer.algorithm.needs_reference
        run_on_rank0(mesh, lambda: prepare_tiny(settings, needs_reference), "--tiny cannot prepare its data")
    metrics = trainer(settings, mesh).train()
    if mesh.is_first:
        print(metrics_table(metrics))
