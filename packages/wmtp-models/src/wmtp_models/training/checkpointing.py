"""Activation checkpointing of trunk and heads (Chen et al., arXiv 1604.06174)."""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from wmtp_core import UserError
from wmtp_models.policy import MtpForCausalLM


def checkpoint_activations(policy: MtpForCausalLM) -> None:
    """Keep of every decoder layer and sequential module its input alone; the backward computes the rest once more.

    Heads on the final hidden state (`mlp`, `linear`) keep about as much as their input, and are left as they are.
    torch's non-reentrant form is used: the reentrant one gives no gradient where the input of a layer has none, as
    above a trunk that does not learn.

    Raises:
        UserError: the trunk's layers are of a kind that transformers cannot run again.
    """
    if not all(isinstance(layer, GradientCheckpointingLayer) for layer in policy.trunk.layers):
        raise UserError(
            f"model.gradient_checkpointing: transformers cannot run the layers of {type(policy.causal_lm).__name__} "
            "again: set it to false, and take a smaller micro-batch"
        )
    # Newer releases of transformers warn of the older name, which is all that the older ones have.
    enable: Any = getattr(policy, "activation_checkpointing_enable", policy.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for outer in policy.modules():  # a module comes before what is in it
        if isinstance(outer, GradientCheckpointingLayer) and outer.gradient_checkpointing:
            for inner in outer.modules():
                if inner is not outer and isinstance(inner, GradientCheckpointingLayer):
                    inner.gradient_checkpointing = False  # or it would run a third time
