"""Tokenize and pack a run's data ahead of it: `python launch/prepare.py --config …`."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("prepare")
