"""launch/train.py with a witness: what every rank selected and lost at each step goes to `$WITNESS/rank{r}.pt`."""

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "launch"))  # before what is imported from there

import train  # noqa: E402 (the path comes first)
from wmtp_train.metrics.accumulator import MetricAccumulator  # noqa: E402 (the path comes first)
from wmtp_train.ranks.lifecycle import run  # noqa: E402 (the path comes first)

seen = []
add = MetricAccumulator.add


def witnessed(self, loss):
    seen.append((loss.inputs.step, loss.inputs.row_ids, loss.weights, loss.policy))
    add(self, loss)


def main() -> None:
    train.main()
    torch.save(seen, Path(os.environ["WITNESS"]) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    MetricAccumulator.add = witnessed
    run(main)
