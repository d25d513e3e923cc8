"""Go on from prompts with a trained model: `python launch/generate.py --model runs/…/model --prompt "def f("`."""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("generate")
