"""An export must give back what went in."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from wmtp_core import UserError
from wmtp_models.policy import MtpForCausalLM


def probe(policy: MtpForCausalLM) -> Tensor:
    """Return tokens to compare models on, int64 `[2, 8]`: the same ones for the same vocabulary."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(policy.config.text.vocab_size, (2, 8), generator=draw)


@torch.no_grad()
def head_logits(policy: MtpForCausalLM) -> Tensor:
    """Return the logits of the probe, float32 `[2, 8, H, V]`."""
    return policy.head_logits(probe(policy))


def require_same_weights(expected: dict[str, Tensor], found: dict[str, Tensor], folder: Path) -> None:
    """Require every weight under its name, equal to the bit.

    Raises:
        UserError: one is missing, there is one too many, or one has changed.
    """
    if differing := sorted(expected.keys() ^ found.keys()):
        raise UserError(f"{folder} was not written right: {differing[0]} is on one side only; nothing was kept")
    for name, weight in expected.items():
        require_equal(weight, found[name], f"{name} in {folder}")


def require_equal(expected: Tensor, found: Tensor, what: str) -> None:
    """Require two tensors equal to the bit, in the same dtype.

    Raises:
        UserError: not.
    """
    if expected.dtype != found.dtype or not torch.equal(expected, found):
        raise UserError(f"{what} differ from the model's after reading them back: nothing was kept")


def require_same_generation(expected: GenerationConfig, found: GenerationConfig, folder: Path) -> None:
    """Require the same stop tokens and the same way to sample.

    Raises:
        UserError: not.
    """
    if expected != found:
        raise UserError(f"generation_config.json in {folder} differs from the model's: nothing was kept")


def require_close(expected: Tensor, found: Tensor, eps: float, what: str) -> float:
    """Require two tensors equal but for rounding; returns the largest difference.

    Args:
        eps: relative rounding of the dtype that they were computed in.

    Raises:
        UserError: more than 64 of that, of the largest.
    """
    difference = float((expected - found).abs().max())
    if not difference <= 64 * eps * float(expected.abs().max()):
        raise UserError(f"{what} differ from the model's by {difference:.2g} after reading them back: nothing was kept")
    return difference
