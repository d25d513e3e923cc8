"""Train: `deepspeed launch/train.py --algo rho1-wmtp --config … --deepspeed_config …`, or with plain python.

`--help` lists every setting; `--tiny` is a complete small run that needs nothing before it.
"""

import torch.distributed as dist

from tiny import TINY_CONFIG, prepare_tiny
from wmtp_train.agreement import require_same_settings
from wmtp_train.algorithms import trainer_class
from wmtp_train.command_line import load_settings
from wmtp_train.processes import run, start_processes
from wmtp_train.signals import noting_stop_signals
from wmtp_train.tables import figures_table
from wmtp_train.together import on_rank_0, together


def main() -> None:
    """Read the settings, build the trainer that they name, and run it."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = together(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    algorithm = together(lambda: trainer_class(settings.algo), "algo")
    require_same_settings(settings)
    if settings.tiny:
        with_reference = settings.algo in ("rho1-wmtp", "softmax-excess")
        on_rank_0(lambda: prepare_tiny(with_reference), "--tiny cannot prepare its data")
    figures = algorithm(settings).train()
    if dist.get_rank() == 0:
        print(figures_table(figures))


if __name__ == "__main__":
    with noting_stop_signals():
        run(main)
