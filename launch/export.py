"""Write a trained model for others: `python launch/export.py --model runs/…/model --format hf --output DIR`."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("export")
