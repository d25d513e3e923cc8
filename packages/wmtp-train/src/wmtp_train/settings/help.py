"""`--help`, answered before anything heavy is imported; options of scripts that need no settings."""

import argparse
import sys
from typing import NoReturn

from wmtp_train.settings.schema import Settings


class Parser(argparse.ArgumentParser):
    """Parse options; say in one line what is wrong with them."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        from wmtp_core import UserError  # imports torch

        raise UserError(f"command line: {message}; --help lists the options")


def answer_help(parser: Parser | None = None) -> None:
    """Print every option of a parser, or every setting, and exit, if the command line asks for it.

    It must be called before torch is imported.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        Settings(_cli_parse_args=["--help"]) if parser is None else parser.parse_args(["--help"])
