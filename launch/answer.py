"""Let a model answer prompts, for its heads to learn from: `python launch/answer.py --model M --data … --output F`."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("answer")
