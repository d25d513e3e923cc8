"""Which parameters of a policy learn."""

from torch import nn

from wmtp_core import UserError
from wmtp_models.policy import MtpForCausalLM


def train_later_heads(policy: MtpForCausalLM) -> None:
    """Let nothing learn but heads 1 … H−1 and the value head (Medusa-1, arXiv 2401.10774, section 2.2.1).

    Trunk, head 0, final norm and unembedding stay as they are, to the bit. Autograd builds no graph where nothing
    learns, so the trunk keeps no activation for a backward.

    Raises:
        UserError: there is no head but head 0.
    """
    if not len(policy.heads):
        raise UserError("model.train is heads, and horizon 1 has none beside head 0: set model.horizon to 2 or more")
    policy.requires_grad_(False)
    for module in (policy.heads, policy.value_head):
        if module is not None:
            module.requires_grad_(True)


def fully_trained_heads(policy: MtpForCausalLM) -> list[nn.Module]:
    """Return all that stands above the trunk: the heads, head 0 too where others are like it, and the value head."""
    first = [policy.trunk.last_layer] if policy.heads.like_last_layer else []
    return [*first, policy.heads, *([policy.value_head] if policy.value_head is not None else [])]
