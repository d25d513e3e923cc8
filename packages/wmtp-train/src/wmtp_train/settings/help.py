"""`--help`, answered before anything heavy is imported."""

import sys

from wmtp_train.settings.schema import Settings


def answer_help() -> None:
    """Print every setting and exit, if the command line asks for it. It must be called before torch is imported."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        Settings(_cli_parse_args=["--help"])
