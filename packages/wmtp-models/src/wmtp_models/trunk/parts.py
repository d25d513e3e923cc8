"""Where a Hugging Face causal LM keeps what multi-token heads need."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform
from wmtp_models.trunk.logit_transform import find_logit_transform

LAYER_LISTS = ("layers", "h", "blocks")
# Which one ends the decoder is not taken from its name: `require_wrappable` holds the product against the logits.
FINAL_NORMS = (
    "norm",
    "ln_f",
    "norm_f",
    "final_norm",
    "final_layer_norm",
    "final_layernorm",
    "layer_norm",
    "embedding_norm",
    "out_norm",
    "ln_out",
)


@dataclass(frozen=True)
class TrunkParts:
    """The modules of one causal LM that its heads read or share."""

    causal_lm: PreTrainedModel
    layers: nn.ModuleList
    norm: nn.Module
    transform: LogitTransform = IDENTITY

    @property
    def last_layer(self) -> nn.Module:
        """The last decoder layer: head 0's own."""
        return self.layers[-1]

    @property
    def unembedding(self) -> nn.Linear:
        """The output embedding, `[V, D]`; looked up anew, as resizing the vocabulary replaces it."""
        unembedding: nn.Linear = self.causal_lm.get_output_embeddings()
        return unembedding

    @property
    def weight(self) -> Tensor:
        """The unembedding's weight `[V, D]`."""
        return self.unembedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits `[..., V]` of normed hidden states `[..., D]`, as the plain model computes them."""
        return self.transform(self.unembedding(hidden))


def trunk_parts(causal_lm: PreTrainedModel) -> TrunkParts:
    """Find the decoder layers, the final norm and the unembedding.

    Raises:
        UserError: one of them is missing or of another kind.
    """
    if causal_lm.config.is_encoder_decoder:
        raise cannot_wrap(causal_lm, "it is an encoder-decoder, not a decoder")
    if "flash" in (causal_lm.config._attn_implementation or ""):
        # transformers keeps packed documents apart there in a batch of one row alone.
        raise cannot_wrap(causal_lm, "its attn_implementation lets packed documents see each other (load it with sdpa)")
    decoder = causal_lm.get_decoder()
    layers = next((getattr(decoder, name) for name in LAYER_LISTS if hasattr(decoder, name)), None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise cannot_wrap(causal_lm, f"it lacks a list of decoder layers (looked for {', '.join(LAYER_LISTS)})")
    norm = next((getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise cannot_wrap(causal_lm, f"it lacks a final norm (looked for {', '.join(FINAL_NORMS)})")
    unembedding = causal_lm.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        raise cannot_wrap(causal_lm, "it lacks an output embedding that is a linear layer")
    if unembedding.bias is not None:
        raise cannot_wrap(causal_lm, "its output embedding has a bias, which the fused cross-entropy does not know")
    return TrunkParts(causal_lm, layers, norm, find_logit_transform(causal_lm.config))


_PLAIN_DECODER = "use a plain decoder such as Llama, Qwen2, Qwen3, Mistral, GPT-2 or GPT-NeoX"


def cannot_wrap(causal_lm: PreTrainedModel, reason: str, fix: str = _PLAIN_DECODER) -> UserError:
    """Return the error that says why a model cannot have heads."""
    return UserError(f"{type(causal_lm).__name__} cannot be wrapped: {reason}; {fix}")
