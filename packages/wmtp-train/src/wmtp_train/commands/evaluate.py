"""Evaluate a trained run: `wmtp evaluate --config …` reads `output_dir/model`, without an optimizer.

Losses, accuracy and acceptance on the held-out sets; HumanEval and tasks of lm-eval where `evaluation` asks for them.
Prints a table and writes `output_dir/evaluation.json`, and the same beside the settings to what `monitor` names.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from wmtp_core import UserError
from wmtp_train.algorithm import Algorithm
from wmtp_train.algorithms import trainer_class
from wmtp_train.atomic_io import write_json
from wmtp_train.commands.tiny import TINY_CONFIG
from wmtp_train.metrics.monitors import open_monitors
from wmtp_train.metrics.table import metrics_table
from wmtp_train.out_of_memory import explain_out_of_memory_without_training
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.run import Run
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings
from wmtp_train.skeleton import receive_parameters


def start() -> None:
    """Run the command and end the process."""
    run(main)


def main() -> None:
    """Open the run with its final model and evaluate it."""
    mesh = start_processes()  # first, so that what is wrong with the settings is said once
    settings, algorithm = run_on_all_ranks(mesh, lambda: read_settings(mesh.world), "config", START_AGAIN)
    wanted, folder = settings.evaluation, settings.output_dir
    opened = Run.open(with_final_model(settings), algorithm, mesh, torch.float32)
    receive_parameters(opened.policy, mesh)
    settings = settings.model_copy(update={"steps": opened.settings.steps})  # what `epochs` come to
    with explain_out_of_memory_without_training(settings, opened.micro_batch, "the model"):
        metrics = opened.evaluate(settings.steps)  # past every warm-up
    run_on_rank0(mesh, lambda: folder.mkdir(parents=True, exist_ok=True), f"output_dir {folder} cannot be made")
    if wanted.humaneval or wanted.tasks:
        metrics |= benchmarks().run_benchmarks(opened.policy, opened.tokenizer, wanted, settings.seed, folder)
    if mesh.is_first:
        print(metrics_table(metrics))
    what = f"metrics in {folder} cannot be saved"
    run_on_rank0(mesh, lambda: write_json(folder / "evaluation.json", metrics), what)
    monitors = open_monitors(settings, mesh, first_step=None)
    run_on_rank0(mesh, lambda: monitors.write_final(metrics, settings.steps), what)
    monitors.close(finished=True)


def read_settings(world: int) -> tuple[Settings, Algorithm]:
    """Read the settings, and refuse those that leave nothing to evaluate.

    Args:
        world: number of processes.

    Raises:
        UserError: there is nothing, or what is wanted cannot be done here.
    """
    settings = load_settings(tiny_config=TINY_CONFIG)
    algorithm, wanted = trainer_class(settings.algo).algorithm, settings.evaluation
    with_final_model(settings)
    if not (settings.data.evaluate or wanted.humaneval or wanted.tasks):
        raise UserError(
            "data.evaluate names no held-out set; give one, like {validation: [FILE]}, or evaluation.humaneval or "
            "evaluation.tasks"
        )
    if wanted.humaneval or wanted.tasks:
        benchmarks().require_benchmarks(wanted, world)
    return settings, algorithm


def benchmarks() -> Any:
    """Return the package that runs HumanEval and tasks of lm-eval; where it is installed, its metadata say so.

    Raises:
        UserError: it is not.
    """
    installed = tuple(entry_points(group="wmtp.benchmarks"))
    if not installed:
        raise UserError("evaluation.humaneval and evaluation.tasks need the package wmtp-eval: install it beside this")
    return installed[0].load()


def with_final_model(settings: Settings) -> Settings:
    """Return the settings with the finished model for what training began from.

    Raises:
        UserError: the folder holds the run of another model.
    """
    own = settings.output_dir / "model"
    folder = Path(settings.evaluation.model or own)
    if own.exists() and not (folder.exists() and own.samefile(folder)):
        raise UserError(
            f"output_dir {settings.output_dir} holds the run of another model than evaluation.model {folder}: "
            "name an output_dir of its own for the results"
        )
    model = {"source": str(folder), "config": None, "train": "all", "gradient_checkpointing": False}
    if settings.model.attention == "flash":  # which has no float32
        model["attention"] = "auto"
    model |= {"compile": False, "liger": False}
    return settings.model_copy(update={"model": settings.model.model_copy(update=model), "resume": False})
