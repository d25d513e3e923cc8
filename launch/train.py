"""Train: `deepspeed launch/train.py --algo rho1-wmtp --config … --deepspeed_config …`, or with plain python.

`--help` lists every setting; `--tiny` is a complete small run that needs nothing before it.
"""

from wmtp_train.commands import run_command

if __name__ == "__main__":
    run_command("train")
