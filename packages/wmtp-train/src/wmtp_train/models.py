"""The models of a run: the policy that learns, and the reference that it is compared with."""

import torch
from transformers import PreTrainedTokenizerBase

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, ReferenceModel, build_policy, load_policy
from wmtp_train.settings import Settings


def open_policy(settings: Settings, tokenizer: PreTrainedTokenizerBase, value_head: bool) -> MtpForCausalLM:
    """The policy that `model.source` or `model.config` names, float32 on the CPU, the same on every rank.

    Raises:
        UserError: neither is set, the source cannot be wrapped, or its vocabulary is smaller than the tokenizer's.
    """
    model = settings.model
    if model.source is not None:
        policy = load_policy(model.source, model.horizon, value_head)
    elif model.config is not None:
        policy = build_policy(model.config, len(tokenizer), model.horizon, value_head, settings.seed)
    else:
        raise UserError(
            "neither model.source nor model.config is set; name a model, or give a configuration to start one"
        )
    vocabulary = policy.config.trunk.vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's vocabulary {vocabulary}; "
            "data.tokenizer must be the model's own"
        )
    longest = getattr(policy.config.trunk, "max_position_embeddings", None)
    if longest is not None and settings.data.sequence_length > longest:
        raise UserError(
            f"data.sequence_length is {settings.data.sequence_length}, and the model has positions for {longest}; "
            "shorten the rows, or raise max_position_embeddings in model.config"
        )
    policy.config.value_gradient_to_trunk = settings.critic.gradient_to_trunk
    if model.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def open_reference(settings: Settings, policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerBase) -> ReferenceModel:
    """The live reference that `reference.source` names, frozen.

    Raises:
        UserError: no source is set, or its vocabulary or tokenizer is not the policy's.
    """
    reference = settings.reference
    if reference.source is None:
        raise UserError(
            f"{settings.algo} compares with a reference: set reference.source to a model, "
            "or reference.scores to what launch/score.py wrote"
        )
    return ReferenceModel.load(
        reference.source,
        dtype=getattr(torch, reference.dtype),
        policy_vocab_size=policy.config.trunk.vocab_size,
        policy_tokenizer=tokenizer,
    )
