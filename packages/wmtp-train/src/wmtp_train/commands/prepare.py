"""Tokenize and pack a run's data ahead of it: `wmtp prepare --config …`. Otherwise training does it.

`--show 3` also prints three rows of every set, with what is learned of them between ⟦ and ⟧.
"""

import argparse

from wmtp_core import UserError
from wmtp_train.commands.tiny import TINY_CONFIG
from wmtp_train.data.loading import DataSpec, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.packed.show import show_rows
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.settings.command_line import load_settings


def start() -> None:
    """Run the command and end the process."""
    run(main)


def main() -> None:
    """Prepare every set and say what is in it."""
    mesh = start_processes()  # first, so that what is wrong with the settings is said once

    def read() -> tuple[DataSpec, int]:
        show = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        show.add_argument("--show", type=int, default=0)
        try:
            own, others = show.parse_known_args()
        except argparse.ArgumentError as error:
            raise UserError(f"command line: {error}; give a number of rows") from error
        settings = load_settings(others, tiny_config=TINY_CONFIG)
        return data_spec(settings, tokenizer_from_settings(settings)), own.show

    spec, shown = run_on_all_ranks(mesh, read, "config", START_AGAIN)
    for name, source in load_sources(spec, mesh).items():
        found = source.prepared
        labels = f", noise: {', '.join(found.label_names)}" if found.label_names else ""
        if mesh.is_first:
            labels += f", {found.cut_off} documents cut to {found.sequence_length} tokens" if found.cut_off else ""
            size = f"{found.documents} documents, {found.tokens} tokens, {len(found.rows)} rows{labels}"
            print(f"{name}: {size}: {found.path}")
            for row in show_rows(found, spec.tokenizer, shown):
                print(row)
