"""Where a Hugging Face causal LM keeps what multi-token heads need, and whether it can have them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_core import UserError

LAYER_LISTS = ("layers", "h")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


@dataclass(frozen=True)
class TrunkParts:
    """The modules of one causal LM that its heads share or replace."""

    layers: nn.ModuleList
    norm: nn.Module
    unembedding: nn.Linear


def trunk_parts(causal_lm: PreTrainedModel) -> TrunkParts:
    """Find the decoder layers, the final norm and the unembedding.

    Raises:
        UserError: one of them is missing or of another kind.
    """
    if causal_lm.config.is_encoder_decoder:
        raise _cannot_wrap(causal_lm, "it is an encoder-decoder, not a decoder")
    if "flash" in (causal_lm.config._attn_implementation or ""):
        # transformers keeps packed documents apart there in a batch of one row alone.
        raise _cannot_wrap(
            causal_lm, "its attn_implementation lets packed documents see each other (load it with sdpa)"
        )
    decoder = causal_lm.get_decoder()
    layers = next((getattr(decoder, name) for name in LAYER_LISTS if hasattr(decoder, name)), None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise _cannot_wrap(causal_lm, f"it lacks a list of decoder layers (looked for {', '.join(LAYER_LISTS)})")
    norm = next((getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise _cannot_wrap(causal_lm, f"it lacks a final norm (looked for {', '.join(FINAL_NORMS)})")
    unembedding = causal_lm.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        raise _cannot_wrap(causal_lm, "it lacks an output embedding that is a linear layer")
    if unembedding.bias is not None:
        raise _cannot_wrap(causal_lm, "its output embedding has a bias, which the fused cross-entropy does not know")
    return TrunkParts(layers, norm, unembedding)


def layer_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states `[B, S, D]` in what a decoder layer returns: some families return a tuple."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def require_wrappable(causal_lm: PreTrainedModel) -> None:
    """Refuse a model whose losses would be wrong without a sign, by looking at a few tokens.

    Its logits must be unembedding(norm(last layer)), neither scaled nor soft-capped (Cohere, Granite, Gemma 2) nor
    projected after the norm. And documents must not see each other where position ids restart (see `packed`): Falcon,
    BLOOM and recurrent layers do not look at these.

    Raises:
        UserError: they are more than that, or documents do.
    """
    parts = trunk_parts(causal_lm)
    seen: list[Tensor] = []
    hook = parts.layers[-1].register_forward_hook(lambda _module, _args, output: seen.append(layer_output(output)))
    was_training = causal_lm.training
    causal_lm.eval()
    device = parts.unembedding.weight.device
    same_end = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]], device=device)  # [2, 4], two documents a row
    positions = torch.tensor([[0, 1, 0, 1]], device=device).expand(2, 4)
    try:
        logits = causal_lm(input_ids=same_end[:1, :2], use_cache=False).logits
        packed = causal_lm(input_ids=same_end, position_ids=positions, use_cache=False).logits
    finally:
        hook.remove()
        causal_lm.train(was_training)
    hidden = parts.norm(seen[0])
    fits = hidden.shape[-1] == parts.unembedding.in_features
    if not fits or not torch.equal(logits.float(), parts.unembedding(hidden).float()):
        raise _cannot_wrap(causal_lm, "its logits are not the plain product of final norm and output embedding")
    if not torch.equal(packed[0, 2:], packed[1, 2:]):
        raise _cannot_wrap(causal_lm, "documents packed into a row see each other in it")


def _cannot_wrap(causal_lm: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f"{type(causal_lm).__name__} cannot be wrapped: {reason}; "
        "use a plain decoder such as Llama, Qwen2, Qwen3, Mistral, GPT-2 or GPT-NeoX"
    )
