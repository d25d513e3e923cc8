"""Tokenize and pack a run's data ahead of it: `python launch/prepare.py --config …`. Otherwise training does it."""

from wmtp_train.settings.help import answer_help

if __name__ == "__main__":
    answer_help()

from tiny import TINY_CONFIG
from wmtp_train.data.loading import DataSpec, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.settings.command_line import load_settings


def main() -> None:
    """Prepare every set and say what is in it."""
    mesh = start_processes()  # first, so that what is wrong with the settings is said once

    def read() -> DataSpec:
        settings = load_settings(tiny_config=TINY_CONFIG)
        return data_spec(settings, tokenizer_from_settings(settings))

    sources = load_sources(run_on_all_ranks(mesh, read, "config", START_AGAIN), mesh)
    for name, source in sources.items():
        found = source.prepared
        labels = f", noise: {', '.join(found.label_names)}" if found.label_names else ""
        if mesh.is_first:
            labels += f", {found.cut_off} documents cut to {found.sequence_length} tokens" if found.cut_off else ""
            size = f"{found.documents} documents, {found.tokens} tokens, {len(found.rows)} rows{labels}"
            print(f"{name}: {size}: {found.path}")


if __name__ == "__main__":
    run(main)
