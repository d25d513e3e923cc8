"""The models of a run: the policy that learns, and the reference that it is compared with."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import (
    MtpForCausalLM,
    Objective,
    ReferenceModel,
    add_adapters,
    build_policy,
    checkpoint_activations,
    choose_attention,
    compile_layers,
    load_policy,
    require_liger,
    set_attention,
    train_later_heads,
)
from wmtp_train.settings.schema import Settings


def build_policy_from_settings(
    settings: Settings,
    tokenizer: PreTrainedTokenizerFast,
    value_head: bool,
    dtype: torch.dtype = torch.float32,
) -> MtpForCausalLM:
    """Build the policy that `model.source` or `model.config` names, on this rank's CPU.

    Args:
        settings: the run's.
        tokenizer: of the run.
        value_head: whether the policy has one.
        dtype: what the engine is going to hold it in. Weights are read so, where that rounds them as it would later:
            where nothing is drawn at random.

    Raises:
        UserError: neither is set, the source cannot be wrapped, or its vocabulary is smaller than the tokenizer's.
    """
    model = settings.model
    if model.source is not None:
        policy = load_policy(
            model.source,
            model.horizon,
            value_head,
            dtype if model.head_kind == "layer" and model.train != "lora" else torch.float32,
            head_kind=model.head_kind,
            shared_module=model.shared_module,
            head_block=model.head_block,
            packing=settings.data.packing,
        )
        # A checkpoint knows its run by the configuration, and a run may go on in another precision.
        policy.config.dtype = policy.config.trunk.dtype = torch.float32
    elif model.config is not None:
        policy = build_policy(
            model.config,
            len(tokenizer),
            model.horizon,
            value_head,
            settings.seed,
            head_kind=model.head_kind,
            shared_module=model.shared_module,
            head_block=model.head_block,
            packing=settings.data.packing,
        )
    else:
        raise UserError(
            "neither model.source nor model.config is set; name a model, or give a configuration to start one"
        )
    vocabulary = policy.config.text.vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's vocabulary {vocabulary}; "
            "data.tokenizer must be the model's own"
        )
    _require_positions(policy.config.text, settings.data.sequence_length, "the model")
    policy.config.value_gradient_to_trunk = settings.critic.gradient_to_trunk
    policy.objective = objective(settings)
    if model.train == "heads":
        train_later_heads(policy)
    elif model.train == "lora":
        add_adapters(policy, model.lora_rank, model.lora_alpha)
    return policy


def objective(settings: Settings) -> Objective:
    """Return what the heads learn.

    Raises:
        UserError: settings of a distillation, and none is asked for; or there is no head that could learn so.
    """
    distill, model = settings.distill, settings.model
    if model.horizon == 1 and (settings.objective == "distill" or model.detach_heads):
        key = "objective: distill" if settings.objective == "distill" else "model.detach_heads: true"
        raise UserError(f"{key} is for heads after the first, and model.horizon is 1: set it to 2 or more")
    if settings.objective == "distill":
        return Objective(distill.divergence, distill.cross_entropy, model.detach_heads)
    if distill.model_fields_set:
        raise UserError("distill is set, and objective is cross-entropy: set it to distill, or leave distill out")
    return Objective(detach_heads=model.detach_heads)


def prepare_layers(policy: MtpForCausalLM, settings: Settings) -> None:
    """Let layers run as `gradient_checkpointing`, `compile` and `liger` say.

    Raises:
        UserError: they cannot.
    """
    model = settings.model
    if model.gradient_checkpointing:
        checkpoint_activations(policy)
    if model.liger and model.compile:
        raise UserError("model.compile and model.liger are both true; the compiler makes such kernels itself: keep one")
    if model.liger:
        require_liger(policy)  # `Run.open` applies them, after the last forward on the CPU
    if model.compile:
        compile_layers(policy)


def use_attention(model: MtpForCausalLM | ReferenceModel, wanted: str, device: torch.device, dtype: torch.dtype) -> str:
    """Give a model the attention that `model.attention` asks for; returns a line for the log.

    Args:
        model: the policy or the reference, wherever it is.
        wanted: `auto`, `sdpa`, `flex` or `flash`.
        device: where it is going to run.
        dtype: what it is going to compute in.

    Raises:
        UserError: it cannot have that attention there.
    """
    isolates = model.isolates_documents if isinstance(model, ReferenceModel) else model.config.isolates_documents
    choice = choose_attention(model.causal_lm, isolates, wanted, device, dtype)
    set_attention(model, choice.implementation)
    return f"{'reference' if isinstance(model, ReferenceModel) else 'policy'} {choice}"


def load_reference(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, policy_vocab_size: int | None = None
) -> ReferenceModel:
    """Load the reference that `reference.source` names, frozen, on the CPU.

    Args:
        settings: the run's.
        tokenizer: of the policy; the reference must have the same.
        policy_vocab_size: V of the policy; the reference must have the same. None: any.

    Raises:
        UserError: no source is set, or its vocabulary or tokenizer is not the policy's.
    """
    reference = settings.reference
    if reference.source is None:
        raise UserError(
            f"{settings.algo} compares with a reference: set reference.source to a model, "
            "or reference.scores to what wmtp score wrote"
        )
    dtype: torch.dtype = getattr(torch, reference.dtype)
    loaded = ReferenceModel.load(reference.source, dtype, policy_vocab_size, tokenizer, settings.data.packing)
    _require_positions(loaded.causal_lm.config.get_text_config(), settings.data.sequence_length, "the reference")
    return loaded


def _require_positions(config: Any, length: int, what: str) -> None:
    """Refuse rows that are longer than what a model has positions for.

    Where long texts have other rotary embeddings than short ones (longrope), transformers chooses by the longest row of
    a batch, so that the loss of a document would hang on its neighbours.

    Raises:
        UserError: they are.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    changes = rope.get("rope_type") == "longrope"
    if changes:
        longest = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    if longest is not None and length > longest:
        why = " before its rotary embeddings change with the length" if changes else ""
        raise UserError(
            f"data.sequence_length is {length}, and {what} has positions for {longest}{why}; shorten the rows, or "
            "raise max_position_embeddings in model.config"
        )
