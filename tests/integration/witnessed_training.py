"""`wmtp train` with a witness: what every rank selected and lost at each step goes to `$WITNESS/rank{r}.pt`."""

import os
from pathlib import Path

import torch

from wmtp_train.commands import train
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.ranks.lifecycle import run

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
