"""What a finished run leaves: the model with its tokenizer, held-out figures and passages; each whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import zero
from deepspeed.runtime.engine import DeepSpeedEngine
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wmtp_core import UserError
from wmtp_models import merge_adapters
from wmtp_train.atomic_io import commit_dir, partial_of, sync, write_json
from wmtp_train.ranks.collective import run_on_rank0


def save_results(
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    figures: dict[str, float],
    passages: dict[str, Any],
) -> None:
    """Write `model/`, `evaluation.json` and `passages.json`. Every rank must call it.

    Raises:
        UserError: they cannot be written; what is there stays as it is.
    """
    save_model(engine, tokenizer, folder / "model")
    what = f"results in {folder} cannot be saved"
    run_on_rank0(lambda: write_json(folder / "evaluation.json", figures), what)
    run_on_rank0(lambda: write_json(folder / "passages.json", passages), what)


def save_model(engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy and its tokenizer so that `from_pretrained` loads them. Every rank must call it.

    Adapters are multiplied out: what is written is a plain WMTP model.
    """
    state = merge_adapters(engine.module, _whole_state(engine))
    partial = partial_of(folder)
    try:
        run_on_rank0(
            lambda: _write_model(engine, state, tokenizer, partial, folder), f"the final model {folder} cannot be saved"
        )
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _whole_state(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """Every parameter and saved buffer, on rank 0's CPU; empty of parameters elsewhere."""
    state = {}
    for name, parameter in engine.module.named_parameters():
        # One parameter at a time: ZeRO-3's shards meet on rank 0 without the whole model on any device.
        with zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    saved = engine.module.state_dict()
    return state | {name: buffer.cpu() for name, buffer in engine.module.named_buffers() if name in saved}


def _write_model(
    engine: DeepSpeedEngine,
    state: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    partial: Path,
    folder: Path,
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    try:
        engine.module.save_pretrained(partial, state_dict=state)
    except SafetensorError as error:  # its way to say that the disk is full
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(partial)
    for path in partial.rglob("*"):
        sync(path)
    commit_dir(partial, folder)
