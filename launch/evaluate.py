"""Evaluate a trained run on its held-out sets: `python launch/evaluate.py --config …` reads `output_dir/model`.

Prints a table and writes `output_dir/evaluation.json`.
"""

import json

import torch.distributed as dist

from tiny import TINY_CONFIG
from wmtp_core import UserError
from wmtp_train.algorithms import trainer_class
from wmtp_train.command_line import load_settings
from wmtp_train.processes import run, start_processes
from wmtp_train.tables import figures_table


def main() -> None:
    """Load the run's final model into its trainer and evaluate it."""
    settings = load_settings(tiny_config=TINY_CONFIG)
    if not settings.data.evaluate:
        raise UserError("data.evaluate names no held-out set; give one, like {validation: [FILE]}")
    model = settings.model.model_copy(update={"source": str(settings.output_dir / "model"), "config": None})
    settings = settings.model_copy(update={"model": model, "resume": False})
    start_processes()
    trainer = trainer_class(settings.algo)(settings)
    trainer.step = settings.steps  # past every warm-up
    figures = trainer.evaluate()
    if dist.get_rank() == 0:
        (settings.output_dir / "evaluation.json").write_text(json.dumps(figures, indent=2))
        print(figures_table(figures))


if __name__ == "__main__":
    run(main)
