"""Tokenise and pack a run's data ahead of it: `python launch/prepare.py --config …`. Otherwise training does it."""

import torch.distributed as dist

from tiny import TINY_CONFIG
from wmtp_train.data.inputs import load_inputs
from wmtp_train.ranks.collective import run_on_all_ranks
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.settings.command_line import load_settings


def main() -> None:
    """Prepare every set and say what is in it."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = run_on_all_ranks(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    for name, data in load_inputs(settings, with_scores=False).sets().items():
        found = data.prepared
        kinds = f", noise: {', '.join(found.kinds)}" if found.kinds else ""
        size = f"{found.documents} documents, {found.tokens} tokens, {len(found.rows)} rows{kinds}"
        if dist.get_rank() == 0:
            print(f"{name}: {size}: {found.path}")


if __name__ == "__main__":
    run(main)
