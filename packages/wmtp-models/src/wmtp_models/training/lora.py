"""Low-rank adapters on the trunk by `peft`, beside heads that learn in full (LoRA, Hu et al., arXiv 2106.09685)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wmtp_core import UserError
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.training.freezing import fully_trained_heads

_ADAPTER = "default"  # what peft calls the only one


def add_adapters(policy: MtpForCausalLM, rank: int, alpha: int) -> None:
    """Make every linear layer of the trunk W + alpha/rank · B A, and let nothing learn but A, B and the heads.

    Head 0 is the trunk's last layer: of the kind `layer` it learns in full like the others, of the other kinds it has
    adapters. Embedding, final norm and unembedding stay as they are. A new adapter is 0, so nothing changes at first.

    Raises:
        UserError: `peft` is not installed, or the trunk has no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("model.train is lora, which needs the package peft: pip install peft") from error
    full = fully_trained_heads(policy)
    in_full = {part for head in full for part in head.modules()}
    linear = {part for layer in policy.trunk.layers for part in layer.modules()} - in_full
    linear = {part for part in linear if isinstance(part, nn.Linear | Conv1D)}
    names = [name for name, part in policy.named_modules() if part in linear]
    if not names:
        raise UserError("model.train is lora, and below the heads there is no linear layer: train all instead")
    transposed = any(isinstance(part, Conv1D) for part in linear)  # a family uses one kind of layer or the other
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, fan_in_fan_out=transposed), policy, _ADAPTER
    )
    for head in full:
        head.requires_grad_(True)


@torch.no_grad()
def merge_adapters(policy: MtpForCausalLM, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the plain weights of a policy, adapters merged in float32, under the names that they have without them.

    Args:
        policy: with adapters or without; only its shape is looked at, as ZeRO-3 may hold its parameters elsewhere.
        state: all its parameters by name, or nothing.
    """
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, part in policy.named_modules():
        if f"{name}.lora_A.{_ADAPTER}.weight" in state:
            layer: Any = part  # peft's
            b, a = (state[f"{name}.lora_{part}.{_ADAPTER}.weight"].float() for part in "BA")
            delta = layer.scaling[_ADAPTER] * ((b @ a).T if layer.fan_in_fan_out else b @ a)
            weight = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return plain
