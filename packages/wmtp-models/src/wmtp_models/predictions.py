"""What the heads of a policy would draft, and whether head 0 would take it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmtp_core import linear_argmax, linear_overlap

if TYPE_CHECKING:
    from wmtp_models.policy import MtpForCausalLM


def predictions(policy: "MtpForCausalLM", states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return every head's most probable token, and how much its distribution has in common with head 0's.

    Args:
        policy: whose heads they are.
        states: of every head, `[B, S/n, D]` each.

    Returns:
        int64 and float32 `[B, S, H]`; the overlap is 1 for head 0, and has no meaning where a head has no target.
    """
    weight, transform, slices = policy.trunk.weight, policy.trunk.transform, policy.slices
    hidden = torch.stack(states, dim=2)  # [B, S/n, H, D]
    predicted = linear_argmax(hidden.flatten(0, 2), weight, transform).view(hidden.shape[:3])
    whole = slices.join(states[0])  # head 0 verifies at t+h, which may lie in another slice
    overlaps = [torch.ones(predicted.shape[:2], device=predicted.device)]
    for h, drafting in enumerate(states[1:], start=1):
        verifying = slices.part(whole.roll(-h, dims=1)).flatten(0, 1)
        overlaps.append(linear_overlap(drafting.flatten(0, 1), verifying, weight, transform).view_as(overlaps[0]))
    return slices.join(predicted), slices.join(torch.stack(overlaps, dim=-1))
