"""Multi-token prediction on any Hugging Face decoder (Gloeckle et al., arXiv 2404.19737).

The trunk runs once and stays as it is: its own last layer, final norm and unembedding are head 0. Heads 1 … H−1 stand
beside it and read what its forward offers (see `heads`); the unembedding is shared. `forward` returns losses per token
and head. Logits `[B, S, H, V]` are never formed.
"""

from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, GenerationConfig, PreTrainedModel

from wmtp_core import GradientPlan, UserError, mtp_targets
from wmtp_models.config import FORMAT, MtpConfig
from wmtp_models.heads import KINDS, ParallelHeads
from wmtp_models.heads.base import HeadInputs
from wmtp_models.objective import Objective, constant, head_losses
from wmtp_models.output import MtpOutput
from wmtp_models.predictions import predictions
from wmtp_models.trunk.capture import capture_call
from wmtp_models.trunk.packing_layout import DocumentBounds, infer_layout
from wmtp_models.trunk.parts import trunk_parts
from wmtp_models.trunk.probe import require_wrappable
from wmtp_models.trunk.router_loss import find_router_loss
from wmtp_models.trunk.row_slices import Slices, WholeRows
from wmtp_models.trunk.sequence_parallel import lay_out
from wmtp_models.value_head import ValueHead


class MtpForCausalLM(PreTrainedModel):
    """A causal LM, the heads beside it, and optionally a value head."""

    config_class = MtpConfig
    supports_gradient_checkpointing = True
    # The trunk has the say: it is built from its own configuration and refuses what it cannot do.
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MtpConfig, causal_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.format_version != FORMAT:
            raise UserError(
                f"the model was saved in format {config.format_version}, with other tensor names than {FORMAT} has: "
                "python launch/export.py --format wmtp converts its folder, and model.source reads it as it is"
            )
        if causal_lm is None:
            causal_lm = AutoModelForCausalLM.from_config(config.trunk)
            if config.generation is not None:
                causal_lm.generation_config = GenerationConfig.from_dict(config.generation)
        self.causal_lm = causal_lm
        self.trunk = parts = trunk_parts(causal_lm)
        self.heads = KINDS[config.head_kind].beside(parts, config)
        self.router_loss = find_router_loss(causal_lm)
        self.slices: Slices = WholeRows()
        self.objective = Objective()
        self.value_head: ValueHead | None = None
        if config.value_head:
            self.add_value_head()
        self.post_init()

    @classmethod
    def wrap(
        cls,
        causal_lm: PreTrainedModel,
        horizon: int = 4,
        value_head: bool = False,
        head_kind: str = ParallelHeads.kind,
        shared_module: bool = True,
        native: dict[str, Any] | None = None,
        packing: bool = True,
        head_block: str = "trunk",
    ) -> Self:
        """Put heads beside a plain causal LM, whose last layer is head 0.

        The model stays what it is, and its weights are shared: training one trains the other. How heads ≥ 1 start is
        their kind's: as copies of the last layer or as the identity they predict what head 0 does. With `native` they
        are built as in `MtpConfig` (see `wrap_with_modules`). Without `packing` it is never given rows of several
        documents, and may be a model in which these would see each other.

        Raises:
            UserError: the architecture cannot be wrapped; the message says what it lacks. Or an unknown kind of heads.
        """
        isolates_documents = require_wrappable(causal_lm, packing)
        for module in causal_lm.modules():
            module._is_hf_initialized = True  # or post_init may draw weights anew that came from elsewhere
        config = MtpConfig(
            trunk=causal_lm.config,
            horizon=horizon,
            head_kind=head_kind,
            shared_module=shared_module,
            head_block=head_block,
            native=native,
            isolates_documents=isolates_documents,
            value_head=value_head,
            generation=causal_lm.generation_config.to_diff_dict(),
            dtype=causal_lm.dtype,
        )
        return cls(config, causal_lm).train(causal_lm.training)

    def unwrap(self) -> PreTrainedModel:
        """Return the plain Hugging Face causal LM of trunk and head 0: the model that was wrapped, not a copy.

        All its weights are shared with the policy, so training either one trains both. Its `save_pretrained` writes a
        plain model of its own architecture, under its own tensor names, without heads 1 … H−1 and the value head.
        """
        plain: PreTrainedModel = self.causal_lm
        return plain

    def add_value_head(self) -> None:
        """Give the policy a new value head, of values 0, in the unembedding's dtype and place."""
        weight = self.trunk.weight
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
        plan: GradientPlan | None = None,
        predict: bool = False,
        bounds: DocumentBounds | None = None,
    ) -> MtpOutput:
        """Compute the losses of all heads at all positions.

        Where processes share rows (`slices`) each is given whole ones, computes its slice, and returns the whole.

        Documents packed into a row do not see each other: give `document_ids`, or `position_ids` that restart at each
        document, or both. A trunk that cannot keep them apart (`MtpConfig.isolates_documents`) is given neither: a row
        of its is one document, and padding on the right.

        Args:
            input_ids: int64 `[B, S]`.
            labels: int64 `[B, S]`, not shifted, −100 where nothing is to be learned; default `input_ids`.
            position_ids: int64 `[B, S]`; default 0, 1, 2, … in each document.
            document_ids: int64 `[B, S]`, equal numbers for equal documents; default as `position_ids` restart.
            attention_mask: `[B, S]`, 0 at padding.
            plan: what gradient the losses will probably receive, given the values; it makes the backward cheaper and
                never other, see `wmtp_core.linear_cross_entropy`.
            predict: also find every head's most probable token and how often its draft would be accepted, at the cost
                of almost three more products with the unembedding.
            bounds: where `position_ids` restart, if the host knows: then nothing waits for an accelerator here.
        """
        position_ids, document_ids = infer_layout(position_ids, document_ids, attention_mask)
        self.heads.expect(1.0 if plan is None else plan.plan.share_of_later_heads)
        with self._capture_routers() as router_logits:
            states = self._forward_heads(input_ids, position_ids, bounds)
        labels = input_ids if labels is None else labels
        targets, valid = mtp_targets(labels, self.config.horizon, attention_mask, document_ids)  # [B, S, H]
        values = None
        if self.value_head is not None:
            values = self.value_head(states[0] if self.config.value_gradient_to_trunk else states[0].detach())
            values = self.slices.join(values)
        constant_values = None if values is None else values.detach()
        ce, distilled = head_losses(self, states, self.slices.part(targets), plan, constant_values)
        predicted, overlap = predictions(self, states) if predict else (None, None)
        auxiliary = None if self.router_loss is None else self.router_loss(router_logits, attention_mask)
        return MtpOutput(
            self.slices.join(ce),
            valid,
            values,
            predicted,
            auxiliary,
            distilled=None if distilled is None else self.slices.join(distilled),
            overlap=overlap,
        )

    def head_logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of all heads, float32 `[B, S, H, V]`, for inference and tests; arguments as `forward`'s."""
        position_ids, _ = infer_layout(position_ids, document_ids, attention_mask)
        hidden = torch.stack(self._forward_heads(input_ids, position_ids), dim=2)  # [B, S, H, D]
        return self.slices.join(self.trunk.logits(hidden).float())

    def _forward_heads(
        self, input_ids: Tensor, position_ids: Tensor | None, bounds: DocumentBounds | None = None
    ) -> list[Tensor]:
        """Return the normed hidden states of every head in one forward of the trunk: of its slices, `[B, S/n, D]`."""
        layout = position_ids if self.config.isolates_documents else None
        rows = lay_out(self.slices, self.causal_lm.config._attn_implementation, input_ids, layout, bounds)
        with rows.known:  # Without a cache: with one, transformers lets packed documents see each other.
            inputs = self._forward_trunk(rows.input_ids, rows.position_ids, use_cache=False, **rows.kwargs)
            with constant(self.trunk.norm.parameters() if self.objective.detach_heads else ()):
                offered = inputs.detached() if self.objective.detach_heads else inputs
                states = [inputs.final, *self.heads(offered)]
        return [state.view(-1, input_ids.shape[1] // self.slices.count, state.shape[-1]) for state in states]

    def _forward_trunk(self, input_ids: Tensor, position_ids: Tensor | None, **how: Any) -> HeadInputs:
        """Run the trunk, and return what its heads may read."""
        part = self.slices.part
        if position_ids is not None:
            how["position_ids"] = part(position_ids)
        with capture_call(self.trunk.layers[self.heads.called_as]) as calls:
            output = self.causal_lm.base_model(input_ids=part(input_ids), **how)
        embedding = self.causal_lm.get_input_embeddings()
        return HeadInputs(calls[0], output.last_hidden_state, input_ids, position_ids, embedding, self.trunk.norm, part)

    def _capture_routers(self) -> Any:
        """Note the routers' logits of the forward in here, where they are needed."""
        if self.router_loss is None:
            return nullcontext([])
        return self.router_loss.capture([*self.trunk.layers, self.heads])

    def forward_cached(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Cache
    ) -> HeadInputs:
        """Run the trunk over tokens that go on from a key-value cache, which takes up theirs.

        Args:
            input_ids: int64 `[B, Q]`.
            position_ids: int64 `[B, Q]`.
            attention_mask: `[B, cached + Q]`, 0 where a slot of the cache holds nothing.
            cache: of the trunk and of the heads, which have layers of their own there.

        Returns:
            What the heads go on from (`Heads.draft`): among it the normed hidden states of head 0, `[B, Q, D]`.
        """
        how = {"attention_mask": attention_mask, "past_key_values": cache, "use_cache": True}
        return self._forward_trunk(input_ids, position_ids, **how)

    def get_input_embeddings(self) -> nn.Module:
        """Return the trunk's."""
        return self.causal_lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the trunk's: one unembedding for all heads."""
        return self.causal_lm.get_output_embeddings()

    def enable_input_require_grads(self) -> None:
        """Do nothing: only reentrant checkpointing needs it, and a trunk that does not learn would build a graph."""

    def _init_weights(self, module: nn.Module) -> None:
        # transformers initializes the trunk by the trunk's own rule; what stands beside it is ours.
        if isinstance(module, ValueHead):
            module.reset_parameters()
        elif any(module is part for part in self.heads.modules()):
            self.heads.init_weights(module, self.causal_lm)


AutoConfig.register(MtpConfig.model_type, MtpConfig)
AutoModel.register(MtpConfig, MtpForCausalLM)
