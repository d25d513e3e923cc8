"""Train: `deepspeed launch/train.py --algo rho1-wmtp --config … --deepspeed_config …`, or with plain python.

`--help` lists every setting; `--tiny` is a complete small run that needs nothing before it.
"""

import torch.distributed as dist

from tiny import TINY_CONFIG, prepare_tiny
from wmtp_train.algorithms import trainer_class
from wmtp_train.metrics.table import metrics_table
from wmtp_train.ranks.collective import run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.consistency import check_settings_match
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.ranks.preemption import catch_stop_signals
from wmtp_train.settings.command_line import load_settings


def main() -> None:
    """Read the settings, build the trainer that they name, and run it."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = run_on_all_ranks(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    algorithm = run_on_all_ranks(lambda: trainer_class(settings.algo), "algo")
    check_settings_match(settings)
    if settings.tiny:
        with_reference = settings.algo in ("rho1-wmtp", "softmax-excess")
        run_on_rank0(lambda: prepare_tiny(with_reference), "--tiny cannot prepare its data")
    figures = algorithm(settings).train()
    if dist.get_rank() == 0:
        print(metrics_table(figures))


if __name__ == "__main__":
    with catch_stop_signals():
        run(main)
