"""The commands, a file each: `wmtp NAME`, `python launch/NAME.py`, or under a launcher `-m wmtp_train NAME`."""

from importlib import import_module

from wmtp_train.commands.options import answer_parser, export_parser, generate_parser
from wmtp_train.settings.help import answer_help

COMMANDS = {
    "prepare": "tokenize and pack a run's data ahead of it",
    "score": "score a run's data with its reference, once for all",
    "answer": "let a model answer prompts, for its heads to learn from",
    "train": "train by one of the algorithms",
    "evaluate": "evaluate a trained run",
    "generate": "go on from prompts with a trained model",
    "export": "write a trained model for others",
}
_PARSERS = {"answer": answer_parser, "generate": generate_parser, "export": export_parser}
"""Of those that take options of their own and no settings."""


def run_command(name: str) -> None:
    """Run a command with the options in `sys.argv`, and end the process; `--help` is answered at once.

    Args:
        name: one of `COMMANDS`.
    """
    answer_help(_PARSERS[name]() if name in _PARSERS else None)
    import_module(f"wmtp_train.commands.{name}").start()  # which imports torch
