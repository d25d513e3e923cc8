"""What a finished run leaves: the model with its tokenizer, held-out metrics and a sample; each whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, merge_adapters
from wmtp_train.atomic_io import commit_dir, partial_of, sync, write_json
from wmtp_train.engines.base import Engine
from wmtp_train.ranks.collective import run_on_rank0
from wmtp_train.ranks.mesh import Mesh


def save_results(
    engine: Engine,
    mesh: Mesh,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    metrics: dict[str, float],
    samples: dict[str, Any],
) -> None:
    """Write `model/`, `evaluation.json` and `passages.json`. Every rank must call it.

    Raises:
        UserError: they cannot be written; what is there stays as it is.
    """
    save_model(engine, mesh, tokenizer, folder / "model")
    what = f"results in {folder} cannot be saved"
    run_on_rank0(mesh, lambda: write_json(folder / "evaluation.json", metrics), what)
    run_on_rank0(mesh, lambda: write_json(folder / "passages.json", samples), what)


def save_model(engine: Engine, mesh: Mesh, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy and its tokenizer so that `from_pretrained` loads them. Every rank must call it.

    Adapters are merged: what is written is a plain WMTP model.
    """
    policy = engine.policy
    state = merge_adapters(policy, engine.full_state_dict())
    partial = partial_of(folder)
    try:
        run_on_rank0(
            mesh,
            lambda: _write_model(policy, state, tokenizer, partial, folder),
            f"the final model {folder} cannot be saved",
        )
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_model(
    policy: MtpForCausalLM,
    state: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    partial: Path,
    folder: Path,
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    try:
        policy.save_pretrained(partial, state_dict=state)
    except SafetensorError as error:  # raised when the disk is full
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(partial)
    for path in partial.rglob("*"):
        sync(path)
    commit_dir(partial, folder)
