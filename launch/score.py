"""Score a run's data with its reference: `deepspeed launch/score.py --config …`, or with plain python."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("score")
