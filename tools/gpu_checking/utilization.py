"""Model FLOP utilization (Chowdhery et al., arXiv 2204.02311, B): what a step computes, over the peak."""

import torch
from torch import nn

from wmtp_models import MtpForCausalLM

# Dense bf16 of the data sheets, FLOP/s.
_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def device_peak(device: torch.device) -> float | None:
    """Return the dense bf16 FLOP/s of a device's data sheet; None for one that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if all(word in name for word in known.split())), None)


def step_flop(policy: MtpForCausalLM, tokens: int, length: int) -> int:
    """Return the FLOP that a training step of all heads needs: 6 a weight and token, and attention's products.

    Whole rows attend, recomputation does not count, and a selection that saves work does not count either, so that
    algorithms are compared by their time alone.

    Args:
        policy: the model; under ZeRO-3 its parameters may be elsewhere, their sizes are known all the same.
        tokens: of a step.
        length: of a row.
    """
    text, horizon = policy.config.text, policy.config.horizon
    tables = {id(policy.get_input_embeddings().weight), id(policy.trunk.weight)}
    products = [p for p in policy.parameters() if _dimensions(p) > 1 and id(p) not in tables]
    unembedding = horizon * text.vocab_size * text.hidden_size
    attending = text.num_hidden_layers + (horizon - 1) * (policy.config.head_kind in ("layer", "sequential"))
    attention = 12 * attending * length * text.hidden_size
    return tokens * (6 * (sum(map(_size, products)) + unembedding) + attention)


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _size(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
