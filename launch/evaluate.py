"""Evaluate a trained run: `python launch/evaluate.py --config …` reads `output_dir/model`, without an optimizer.

Losses, accuracy and acceptance on the held-out sets; HumanEval and tasks of lm-eval where `evaluation` asks for them.
Prints a table and writes `output_dir/evaluation.json` and TensorBoard's HPARAMS.
"""

from pathlib import Path

import torch.distributed as dist

from tiny import TINY_CONFIG
from wmtp_core import UserError
from wmtp_eval import require_benchmarks, run_benchmarks
from wmtp_train.algorithms import trainer_class
from wmtp_train.atomic_io import write_json
from wmtp_train.metrics.hparams import write_hparams
from wmtp_train.metrics.table import metrics_table
from wmtp_train.ranks.collective import run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.lifecycle import device, fail_on_all_ranks, run, start_processes
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings


def main() -> None:
    """Load the run's final model into its trainer and evaluate it."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = run_on_all_ranks(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    algorithm = run_on_all_ranks(lambda: trainer_class(settings.algo), "algo")
    evaluated = run_on_all_ranks(lambda: as_evaluated(settings), "evaluation.model")
    wanted, folder = settings.evaluation, settings.output_dir
    if not (settings.data.evaluate or wanted.humaneval or wanted.tasks):
        fail_on_all_ranks(
            "data.evaluate names no held-out set; give one, like {validation: [FILE]}, or evaluation.humaneval or "
            "evaluation.tasks"
        )
    run_on_all_ranks(lambda: require_benchmarks(wanted), "evaluation")
    trainer = algorithm(evaluated)
    trainer.policy.to(device()).eval()
    trainer.step = settings.steps  # past every warm-up
    figures = trainer.evaluate()
    run_on_rank0(lambda: folder.mkdir(parents=True, exist_ok=True), f"output_dir {folder} cannot be made")
    figures |= run_benchmarks(trainer.policy, trainer.inputs.tokenizer, wanted, settings.seed, folder)
    if dist.get_rank() == 0:
        print(metrics_table(figures))
    run_on_rank0(lambda: write_json(folder / "evaluation.json", figures), f"figures in {folder} cannot be saved")
    run_on_rank0(
        lambda: write_hparams(folder / "tensorboard", settings, figures), f"figures in {folder} cannot be saved"
    )


def as_evaluated(settings: Settings) -> Settings:
    """The settings with the finished model for what training began from."""
    own = settings.output_dir / "model"
    folder = Path(settings.evaluation.model or own)
    if own.exists() and not (folder.exists() and own.samefile(folder)):
        raise UserError(
            f"output_dir {settings.output_dir} holds the run of another model than evaluation.model {folder}: "
            "name an output_dir of its own for the results"
        )
    model = {"source": str(folder), "config": None, "train": "all", "gradient_checkpointing": False}
    return settings.model_copy(update={"model": settings.model.model_copy(update=model), "resume": False})


if __name__ == "__main__":
    run(main)
