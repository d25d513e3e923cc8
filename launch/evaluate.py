"""Evaluate a trained run: `python launch/evaluate.py --config …`."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
