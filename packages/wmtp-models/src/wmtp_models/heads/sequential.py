"""Sequential heads: each reads the head before it and the embedding of one more token (DeepSeek-V3, arXiv 2412.19437).

Section 2.2, equations 21 to 23: `h^k_t = post_norm(block(eh_proj([enorm(E(x_{t+k})); hnorm(h^{k-1}_t)])))`, with h^0
the trunk's final, normed state; head k predicts x_{t+k+1} from h^k by the trunk's unembedding. In training x_{t+k}
is the text's own token, in decoding the one drafted before.
"""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from wmtp_models.heads.base import HeadInputs, Heads, Propose, set_layer_idx
from wmtp_models.heads.qwen2_block import build_qwen2_block
from wmtp_models.heads.sparse_grad_linear import make_row_sparse
from wmtp_models.native.blocks import NativeModules
from wmtp_models.native.layouts import require_layout
from wmtp_models.trunk.capture import LayerCall
from wmtp_models.trunk.parts import TrunkParts


class SequentialModule(GradientCheckpointingLayer):
    """One module: two norms, a projection, a decoder layer and a norm; checkpointed whole, where activations are.

    Args:
        trunk: whose norms it is given like.
        block: the decoder layer.
        normed: whether there is a norm at the end.
    """

    def __init__(self, trunk: TrunkParts, block: nn.Module, normed: bool = True) -> None:
        super().__init__()
        width = trunk.weight.shape[1]
        self.enorm = copy.deepcopy(trunk.norm)
        self.hnorm = copy.deepcopy(trunk.norm)
        self.eh_proj = nn.Linear(2 * width, width, bias=False, device=trunk.weight.device, dtype=trunk.weight.dtype)
        self.block = block
        self.post_norm = copy.deepcopy(trunk.norm) if normed else nn.Identity()
        for norm in (self.enorm, self.hnorm):
            norm._is_hf_initialized = False  # type: ignore[assignment]  # what the trunk's norm learned is for another place

    def forward(self, embedded: Tensor, hidden_states: Tensor, last_layer: LayerCall) -> Tensor:
        """Return the next depth's hidden states.

        Args:
            embedded: `[B, S, D]`, of the tokens k places ahead.
            hidden_states: `[B, S, D]` of the depth before.
            last_layer: how the trunk calls its last layer.

        Returns:
            `[B, S, D]`, normed where the module has a norm at the end.
        """
        both = torch.cat([self.enorm(embedded), self.hnorm(hidden_states)], dim=-1)
        normed: Tensor = self.post_norm(last_layer.repeat(self.block, self.eh_proj(both)))
        return normed


class SequentialHeads(Heads):
    """Heads 1 … H−1 as depths 1 … H−1 of sequential modules.

    Args:
        trunk: which they stand beside.
        depths: H−1.
        shared: one module for every depth; else each has its own.
        native: how modules are built that the trunk's source shipped; None: they are new.
        qwen2_block: the decoder layer of new ones is Qwen2's, and not like the trunk's last one.
    """

    kind = "sequential"

    def __init__(
        self,
        trunk: TrunkParts,
        depths: int,
        shared: bool,
        native: NativeModules | None = None,
        qwen2_block: bool = False,
    ) -> None:
        super().__init__()
        count = min(depths, 1) if shared else depths
        self.depths, self.trunk_layers = depths, len(trunk.layers)
        if native is None:
            build = build_qwen2_block if qwen2_block else lambda trunk: copy.deepcopy(trunk.last_layer)
            modules = [SequentialModule(trunk, build(trunk)) for _ in range(count)]
        else:
            self.called_as = native.called_as(trunk.causal_lm.config)
            normed = require_layout(native.layout).post_norm is not None
            modules = [SequentialModule(trunk, block, normed) for block in native.build_blocks(trunk, count)]
        self.layers: Any = nn.ModuleList(modules)
        make_row_sparse(self)

    @classmethod
    def beside(cls, trunk: TrunkParts, config: PreTrainedConfig) -> Self:
        """Build depths 1 … H−1; decoder layers that no source shipped start as copies of the trunk's last one."""
        native = None if config.native is None else NativeModules(**config.native)
        return cls(trunk, config.horizon - 1, config.shared_module, native, config.head_block == "qwen2")

    @torch.no_grad()
    def init_weights(self, module: nn.Module, causal_lm: PreTrainedModel) -> None:
        """Initialize a module as the trunk's family does; the projection as the mean of its two inputs."""
        if isinstance(module, nn.Linear) and any(module is layer.eh_proj for layer in self.layers):
            module.weight.copy_(torch.eye(len(module.weight)).repeat(1, 2) / 2)
        else:
            causal_lm._init_weights(module)

    def forward(self, inputs: HeadInputs) -> list[Tensor]:
        """Return the normed hidden states of heads 1 … H−1, `[B, S, D]` each."""
        states, hidden = [], inputs.final
        for depth in range(1, self.depths + 1):
            ahead = tokens_ahead(inputs.input_ids, inputs.position_ids, depth)
            hidden = self._module(depth)(inputs.embedding(inputs.part(ahead)), hidden, inputs.last_layer)
            states.append(hidden)
        return states

    def parts_that_skip_rows(self) -> list[nn.Module]:
        """Return the last depth's layer, unless other depths share it: each depth attends to all of the one before."""
        return [self.layers[-1].block] if 0 < self.depths == len(self.layers) else []

    def draft(self, inputs: HeadInputs, following: Tensor, rows: Tensor, last: Tensor, propose: Propose) -> None:
        """Draft token after token: each depth reads what the one before proposed.

        A cache of depth ≥ 2 keeps what it computed from a draft, should that be rejected: up to H−2 positions a round,
        which only ever costs a draft.
        """
        hidden, tokens = inputs.final, following
        for depth in range(1, self.depths + 1):
            module = self._module(depth)
            set_layer_idx(module.block, self.trunk_layers + depth - 1)  # a shared one has a cache for each depth too
            hidden = module(inputs.embedding(tokens), hidden, inputs.last_layer)
            drafted = propose(hidden[rows, last].unsqueeze(1)).squeeze(1)
            tokens = tokens.roll(-1, dims=1)
            tokens[rows, last] = drafted

    def __len__(self) -> int:
        """Return H−1."""
        return self.depths

    def _module(self, depth: int) -> SequentialModule:
        module: SequentialModule = self.layers[min(depth, len(self.layers)) - 1]
        return module


def tokens_ahead(input_ids: Tensor, position_ids: Tensor | None, count: int) -> Tensor:
    """Return the token `count` places ahead of each one in its document, int64 `[B, S]`; without one, the token itself.

    So no depth reads another document. Where there is none, head `count` has no target, nor have the positions of the
    document after it, so that nothing is learned from what is computed there.

    Args:
        input_ids: int64 `[B, S]`.
        position_ids: int64 `[B, S]`, which restart at each document; None: a row is one document.
        count: k ≥ 1.
    """
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    same_document = torch.zeros_like(input_ids, dtype=torch.bool)
    same_document[:, :-count] = position_ids[:, count:] == position_ids[:, :-count] + count
    return input_ids.roll(-count, dims=1).where(same_document, input_ids)


def swap_inputs(projection: Tensor) -> Tensor:
    """Return `eh_proj` for the hidden state before the embedding, `[D, 2D]`, or the other way; ours has it second."""
    return torch.cat(projection.chunk(2, dim=1)[::-1], dim=1)
