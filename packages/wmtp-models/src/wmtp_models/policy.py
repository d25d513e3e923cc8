"""Multi-token prediction on any Hugging Face decoder (Gloeckle et al., arXiv 2404.19737).

The trunk runs once; H parallel heads, each one decoder layer of the trunk's kind, read its output; the final norm and
the unembedding are shared. Smaller heads read the final hidden state of head 0 instead, which is always the trunk's own
last layer. `forward` returns losses per token and head. Logits `[B, S, H, V]` are never formed.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, GenerationConfig, PreTrainedModel

from wmtp_core import GradientHint, linear_argmax, linear_cross_entropy, mtp_targets
from wmtp_models.config import MtpConfig
from wmtp_models.heads.medusa import LAYER, LinearHead, ResidualHead, state_heads
from wmtp_models.heads.parallel import HeadLayers
from wmtp_models.trunk.packing_layout import infer_layout
from wmtp_models.trunk.parts import require_wrappable, trunk_parts
from wmtp_models.value_head import ValueHead


class MtpOutput(NamedTuple):
    """What a forward pass gives. A tuple, so that DeepSpeed finds the tensors that its backward hooks belong on.

    Attributes:
        ce: float32 `[B, S, H]`, −log P(target | tokens ≤ t, head h); 0 where not valid.
        valid: bool `[B, S, H]`, where head h has a target at position t.
        values: float32 `[B, S]`, or None without a value head.
        predicted: int64 `[B, S, H]`, every head's most probable token, or None where it was not asked for.
    """

    ce: Tensor
    valid: Tensor
    values: Tensor | None
    predicted: Tensor | None = None


class MtpForCausalLM(PreTrainedModel):
    """A causal LM whose last layer is `HeadLayers`, and optionally heads on its final hidden state and a value head."""

    config_class = MtpConfig
    supports_gradient_checkpointing = True
    # The trunk has the say: it is built from its own configuration and refuses what it cannot do.
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MtpConfig, causal_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if causal_lm is None:
            causal_lm = AutoModelForCausalLM.from_config(config.trunk)
            if config.generation is not None:
                causal_lm.generation_config = GenerationConfig.from_dict(config.generation)
        self.causal_lm = causal_lm
        parts = trunk_parts(self.causal_lm)
        weight = parts.unembedding.weight
        layers = config.horizon if config.head_kind == LAYER else 1
        parts.layers[-1] = HeadLayers(parts.layers[-1], layers)
        self.state_heads = state_heads(config.head_kind, weight.shape[1], config.horizon - layers)
        self.state_heads.to(device=weight.device, dtype=weight.dtype)
        self.value_head: ValueHead | None = None
        if config.value_head:
            self.add_value_head()
        self.post_init()

    @classmethod
    def wrap(
        cls, causal_lm: PreTrainedModel, horizon: int = 4, value_head: bool = False, head_kind: str = LAYER
    ) -> Self:
        """Put heads on a plain causal LM and take it over: its weights become this model's, its last layer head 0.

        Heads ≥ 1 start as copies of the last layer, or as the identity: they predict what head 0 does. The model that
        was passed must not be used on its own any more; `unwrap` gives a plain one back.

        Raises:
            UserError: the architecture cannot be wrapped; the message says what it lacks. Or an unknown kind of heads.
        """
        require_wrappable(causal_lm)
        for module in causal_lm.modules():
            module._is_hf_initialized = True  # or post_init may draw weights anew that came from elsewhere
        config = MtpConfig(
            trunk=causal_lm.config,
            horizon=horizon,
            head_kind=head_kind,
            value_head=value_head,
            generation=causal_lm.generation_config.to_diff_dict(),
            dtype=causal_lm.dtype,
        )
        return cls(config, causal_lm).train(causal_lm.training)

    def unwrap(self) -> PreTrainedModel:
        """The plain Hugging Face causal LM of trunk and head 0.

        Its modules and configuration are its own, its parameters and buffers are shared with this model: no weight is
        copied, calling, saving or re-wiring it leaves this model as it was, and training it trains both.
        """
        shared = {id(tensor): tensor for tensor in chain(self.causal_lm.parameters(), self.causal_lm.buffers())}
        layers = self.head_layers
        memo: dict[int, Any] = {**shared, id(layers): copy.deepcopy(layers.heads[0], dict(shared))}
        plain: PreTrainedModel = copy.deepcopy(self.causal_lm, memo)
        return plain

    @property
    def head_layers(self) -> HeadLayers:
        """The module in the place of the trunk's last layer."""
        layers = trunk_parts(self.causal_lm).layers[-1]
        assert isinstance(layers, HeadLayers)
        return layers

    def add_value_head(self) -> None:
        """Give the policy a new value head, of values 0, in the unembedding's dtype and place."""
        weight = trunk_parts(self.causal_lm).unembedding.weight
        self.value_head = ValueHead(weight.shape[1]).to(device=weight.device, dtype=weight.dtype)
        self.config.value_head = True

    def remove_value_head(self) -> None:
        """Drop the value head and its weights."""
        self.value_head = None
        self.config.value_head = False

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        guess: Callable[[Tensor | None], GradientHint | None] | None = None,
        predict: bool = False,
    ) -> MtpOutput:
        """Losses of all heads at all positions.

        Documents packed into a row do not see each other: give `document_ids`, or `position_ids` that restart at each
        document, or both.

        Args:
            input_ids: int64 `[B, S]`.
            labels: int64 `[B, S]`, not shifted, −100 where nothing is to be learned; default `input_ids`.
            position_ids: int64 `[B, S]`; default 0, 1, 2, … in each document.
            document_ids: int64 `[B, S]`, equal numbers for equal documents; default as `position_ids` restart.
            attention_mask: `[B, S]`, 0 at padding.
            guess: from the values (None without a value head) to a guess of the gradient that the losses will receive;
                it makes the backward cheaper and never other, see `wmtp_core.linear_cross_entropy`.
            predict: also find every head's most probable token, at the cost of one more product with the unembedding.
        """
        position_ids, document_ids = infer_layout(position_ids, document_ids, attention_mask)
        states = self._head_states(input_ids, position_ids)
        labels = input_ids if labels is None else labels
        targets, valid = mtp_targets(labels, self.config.horizon, attention_mask, document_ids)  # [B, S, H]
        values = None
        if self.value_head is not None:
            values = self.value_head(states[0] if self.config.value_gradient_to_trunk else states[0].detach())
        guessed = None if guess is None else guess(None if values is None else values.detach())
        # The weight is used in here and nowhere else, so that ZeRO-3 gathers it around this forward and its backward.
        weight = trunk_parts(self.causal_lm).unembedding.weight
        frozen = not (weight.requires_grad or states[0].requires_grad)  # head 0 and all below it
        if guessed is not None and frozen:
            guessed = replace(guessed, per_head=pad(guessed.per_head[1:], (1, 0)))
        hidden = torch.stack(states, dim=2)  # [B, S, H, D]
        ce = linear_cross_entropy(hidden.flatten(0, 2), weight, targets.flatten(), guess=guessed).view_as(targets)
        if frozen:  # or losses of head 0 would cost gradients that lead nowhere
            ce = torch.cat([ce[..., :1].detach(), ce[..., 1:]], dim=-1)
        predicted = linear_argmax(hidden.flatten(0, 2), weight).view_as(targets) if predict else None
        return MtpOutput(ce=ce, valid=valid, values=values, predicted=predicted)

    def head_logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of all heads, float32 `[B, S, H, V]`, for inference and tests; arguments as in `forward`."""
        position_ids, _ = infer_layout(position_ids, document_ids, attention_mask)
        hidden = torch.stack(self._head_states(input_ids, position_ids), dim=2)  # [B, S, H, D]
        logits: Tensor = trunk_parts(self.causal_lm).unembedding(hidden)
        return logits.float()

    def _head_states(self, input_ids: Tensor, position_ids: Tensor | None) -> list[Tensor]:
        """Normed hidden states of every head, `[B, S, D]` each."""
        # Without a cache, always: with one, transformers lets packed documents see each other.
        return self._run_heads(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def _run_heads(self, **inputs: Any) -> list[Tensor]:
        """Normed hidden states of every head in one forward of the trunk."""
        with self.head_layers.collecting() as later_layers:
            final: Tensor = self.causal_lm.base_model(**inputs).last_hidden_state
        norm = trunk_parts(self.causal_lm).norm
        return [final, *map(norm, later_layers), *(head(final) for head in self.state_heads)]

    def decoding_states(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Cache, all_heads: bool
    ) -> Tensor:
        """Normed hidden states of tokens that go on from a key-value cache, which takes up theirs.

        Args:
            input_ids: int64 `[B, Q]`.
            position_ids: int64 `[B, Q]`.
            attention_mask: `[B, cached + Q]`, 0 where a slot of the cache holds nothing.
            cache: of the trunk and of every head, each in layers of its own.
            all_heads: whether every head runs, or head 0 alone; a cache must always be used with one of the two.

        Returns:
            `[B, Q, H, D]`, or `[B, Q, 1, D]` of head 0.
        """
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        if all_heads:
            return torch.stack(self._run_heads(**inputs), dim=2)
        final: Tensor = self.causal_lm.base_model(**inputs).last_hidden_state
        return final.unsqueeze(2)

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's."""
        return self.causal_lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The trunk's: one unembedding for all heads."""
        return self.causal_lm.get_output_embeddings()

    def enable_input_require_grads(self) -> None:
        """Nothing: transformers asks for it with every checkpointing, only the reentrant one needs it, and a trunk that
        does not learn would build a graph for it.
        """

    def _init_weights(self, module: nn.Module) -> None:
        # transformers initialises the trunk and its layers by the trunk's own rule; the small heads are ours.
        if isinstance(module, ValueHead | ResidualHead | LinearHead):
            module.reset_parameters()


AutoConfig.register(MtpConfig.model_type, MtpConfig)
AutoModel.register(MtpConfig, MtpForCausalLM)
