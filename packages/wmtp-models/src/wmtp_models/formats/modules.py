"""Sequential modules as tensors: what the formats of servers have in common."""

from typing import Any

from torch import Tensor

from wmtp_core import UserError
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.policy import MtpForCausalLM

ATTENTION = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
QK_NORM = {f"self_attn.{part}_norm.weight" for part in "qk"}
QKV_BIAS = {f"self_attn.{part}_proj.bias" for part in "qkv"}
REST = {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
REST |= {f"{part}.weight" for part in ("input_layernorm", "post_attention_layernorm")}
REST |= {f"{part}.weight" for part in ("enorm", "hnorm", "eh_proj", "post_norm")}
"""Of a module with a gated MLP: all that is not attention."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
"""What the configurations of all these trunks call alike."""


def sequential_heads(policy: MtpForCausalLM, form: str) -> SequentialHeads:
    """Return the heads of a policy, if they are sequential.

    Args:
        policy: what is exported.
        form: the name of the format, for the message.

    Raises:
        UserError: they are of another kind or of the source, or there is none, or their norms are not RMSNorm.
    """
    heads: Any = policy.heads
    if not isinstance(heads, SequentialHeads) or not len(heads):
        found = f"its heads are of the kind {policy.config.head_kind}" if len(heads) else "there is no head but head 0"
        raise UserError(f"{form} holds sequential heads, and {found}: export to wmtp")
    if not policy.trunk.transform.is_identity:
        raise UserError(f"{form} holds modules of trunks whose logits are neither scaled nor capped: export to wmtp")
    if policy.config.native is not None:
        raise UserError(f"{form} holds modules made here, and these are of the model's source: export to native")
    if not hasattr(policy.config.trunk, "rms_norm_eps"):
        raise UserError(f"{form} holds modules whose norms are RMSNorm, as Llama's; export to wmtp")
    return heads


def module_weights(heads: SequentialHeads, depth: int) -> dict[str, Tensor]:
    """Return the weights of the module at a depth from 1, those of its decoder layer without `block.` before them."""
    state = heads.layers[min(depth, len(heads.layers)) - 1].state_dict()
    return {name.removeprefix("block."): tensor for name, tensor in state.items()}


def one_module(policy: MtpForCausalLM, form: str, *forms_of_attention: set[str]) -> dict[str, Tensor]:
    """Return the weights of the module that a server applies at every depth.

    Args:
        policy: what is exported.
        form: the name of the format, for the message.
        forms_of_attention: the sets of names of attention's weights that the format can hold, beside `ATTENTION`.

    Raises:
        UserError: each depth has its own module, or its layer has other weights than the format holds.
    """
    heads = sequential_heads(policy, form)
    if len(heads.layers) > 1:
        raise UserError(f"{form} holds one module for all depths, and here each has its own: export to generic or wmtp")
    weights = module_weights(heads, 1)
    held = [ATTENTION | REST | more for more in forms_of_attention]
    if weights.keys() not in held:
        odd = sorted(weights.keys() ^ held[0])[0]
        family = policy.config.trunk.model_type
        raise UserError(f"{form} has no place for the layer of {family} ({odd}): export to generic or wmtp")
    return weights


def vllm_mtp(drafts: int) -> str:
    """Return how vLLM is started with a folder of trunk and modules."""
    return f'vllm serve FOLDER --speculative-config \'{{"method": "mtp", "num_speculative_tokens": {drafts}}}\''


def sglang_mtp(drafts: int) -> str:
    """Return how SGLang is started with a folder of trunk and modules."""
    return f"python -m sglang.launch_server --model-path FOLDER {sglang_options(drafts)}"


def sglang_options(drafts: int) -> str:
    """Return what SGLang is to be told of the modules."""
    return (
        f"--speculative-algorithm EAGLE --speculative-num-steps {drafts} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {drafts + 1}"
    )
