"""Write a trained model for others: `wmtp export --model runs/…/model --format hf --output DIR`.

The export is made aside, read back and compared with the model; only then it gets its name.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError

from wmtp_core import UserError
from wmtp_models import load_tokenizer, load_wmtp
from wmtp_models.formats.model_card import write_model_card
from wmtp_models.formats.registry import FORMATS
from wmtp_train.atomic_io import commit_dir, partial_of, sync
from wmtp_train.commands.options import export_parser
from wmtp_train.ranks.lifecycle import run


def start() -> None:
    """Run the command and end the process."""
    run(main)


def main() -> None:
    """Read, write, read back, compare, name."""
    arguments = export_parser().parse_args()
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output} exists already: choose another folder, or remove it")
    transformers.utils.logging.disable_progress_bar()
    policy = load_wmtp(arguments.model).eval()
    tokenizer = load_tokenizer(arguments.model) if any(Path(arguments.model).glob("tokenizer*")) else None
    form = FORMATS[arguments.format]
    partial = partial_of(arguments.output)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        form.save(policy, partial)
        compared = form.check(policy, partial)
        write_model_card(policy, partial, form.commands(policy), *read_record(Path(arguments.model)))
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for path in partial.rglob("*"):
            sync(path)
        commit_dir(partial, arguments.output)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full
        raise UserError(f"--output {arguments.output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{arguments.output}: read back, {compared}")
    for part in form.unsupported_parts(policy):
        print(f"not in it, as the format {arguments.format} has no place for it: {part}")
    if tokenizer is None:
        print(f"no tokenizer in {arguments.model}, so there is none in {arguments.output}")


def read_record(model: Path) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Read what the run that a model folder lies in left beside it, for the model card; nothing where there is none.

    Returns:
        What it was made from and with, by a label; and by held-out set, the acceptance of each head's drafts.

    Raises:
        UserError: a file of the run cannot be read.
    """
    settings, metrics = (_read_json(model.parent / f"{name}.json") for name in ("settings", "evaluation"))
    training = {}
    if "algo" in settings:
        training = {
            "base model": settings["model"]["source"] or "none, trained from the start",
            "algorithm": f"`{settings['algo']}`, {settings['steps']} steps",
            "data": ", ".join(settings["data"]["train"]),
        }
    acceptance: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        held_out, _, metric = name.partition("/")
        if metric.startswith("acceptance/head_") or metric == "tokens_per_forward":
            label = metric.removeprefix("acceptance/").replace("_", " ")
            acceptance.setdefault(held_out, {})[label] = value
    return training, acceptance


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read for the model card ({error}): mend it or move it away") from error
