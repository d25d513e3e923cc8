"""The first format of a saved WMTP folder, in which the heads stood inside the trunk's last layer."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wmtp_core import UserError
from wmtp_models.config import FORMAT, MtpConfig
from wmtp_models.hf_loading import from_pretrained_strict, one_line
from wmtp_models.policy import MtpForCausalLM


def load_first_format(folder: Path, config: MtpConfig, dtype: torch.dtype) -> MtpForCausalLM:
    """Load a folder of the first format.

    Args:
        folder: the folder.
        config: what its config.json says.
        dtype: of all parameters.

    Raises:
        UserError: weights are missing, foreign or unreadable, or names of both formats stand side by side.
    """
    state: dict[str, Tensor] = {}
    whole = folder / "model.safetensors"  # which transformers prefers to the pieces of a larger model, too
    for path in [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors")):
        try:
            state |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the weights in {folder} cannot be read ({one_line(error)}): save them again") from error
    config.format_version = FORMAT
    renamed = {current_name(name): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise UserError(f"{folder} mixes the tensor names of two formats: give a folder as one version saved it")
    policy: MtpForCausalLM = from_pretrained_strict(
        MtpForCausalLM, None, folder, "config.json", config=config, state_dict=renamed, dtype=dtype
    )
    return policy


def current_name(name: str) -> str:
    """Return today's name of a tensor of the first format."""
    if name.startswith("state_heads."):
        return name.replace("state_heads.", "heads.blocks.", 1)
    if found := re.fullmatch(r"(causal_lm\..+)\.heads\.(\d+)\.(.+)", name):
        layer, head, rest = found[1], int(found[2]), found[3]
        return f"heads.layers.{head - 1}.{rest}" if head else f"{layer}.{rest}"
    return name
