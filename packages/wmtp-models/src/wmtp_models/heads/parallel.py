"""Parallel heads: decoder layers beside the trunk's last one (Gloeckle et al., arXiv 2404.19737, section 2)."""

import copy
from typing import Self

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from wmtp_models.heads.base import HeadInputs, Heads, set_layer_idx
from wmtp_models.heads.sparse_grad_linear import make_row_sparse
from wmtp_models.trunk.parts import TrunkParts


class ParallelHeads(Heads):
    """H−1 decoder layers of the trunk's own kind, all called as the trunk calls its last layer.

    So they know no architecture. They start as copies of that layer, which is head 0.

    Args:
        trunk: which they stand beside.
        count: H−1.
    """

    kind = "layer"
    like_last_layer = True

    def __init__(self, trunk: TrunkParts, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(trunk.last_layer) for _ in range(count))
        for index, layer in enumerate(self.layers, start=len(trunk.layers)):
            set_layer_idx(layer, index)
        make_row_sparse(self)  # head 0 learns from every token, these do not

    @classmethod
    def beside(cls, trunk: TrunkParts, config: PreTrainedConfig) -> Self:
        """Build heads 1 … H−1 as copies of the trunk's last layer."""
        return cls(trunk, config.horizon - 1)

    def init_weights(self, module: nn.Module, causal_lm: PreTrainedModel) -> None:
        """Initialize a module as the trunk's family does."""
        causal_lm._init_weights(module)

    def forward(self, inputs: HeadInputs) -> list[Tensor]:
        """Return the normed hidden states of heads 1 … H−1, `[B, S, D]` each."""
        states = [inputs.last_layer.repeat(layer) for layer in self.layers]
        return [inputs.norm(state) for state in states]

    def __len__(self) -> int:
        """Return H−1."""
        return len(self.layers)
