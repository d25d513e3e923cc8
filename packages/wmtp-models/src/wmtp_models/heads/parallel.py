"""Parallel heads: decoder layers beside the trunk's last one (Gloeckle et al., arXiv 2404.19737, section 2)."""

import copy
from typing import Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_models.heads.base import HeadInputs, Heads
from wmtp_models.heads.sparse_grad_linear import make_row_sparse
from wmtp_models.trunk.parts import TrunkParts


class ParallelHeads(Heads):
    """H−1 decoder layers of the trunk's own kind, all called as the trunk calls its last layer.

    So they know no architecture. They start as copies of that layer, which is head 0.

    Args:
        last_layer: of the trunk.
        count: H−1.
    """

    kind = "layer"
    like_last_layer = True

    def __init__(self, last_layer: nn.Module, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(last_layer) for _ in range(count))
        for offset, layer in enumerate(self.layers, start=1):
            _shift_layer_idx(layer, offset)
        make_row_sparse(self)  # head 0 learns from every token, these do not

    @classmethod
    def beside(cls, trunk: TrunkParts, count: int) -> Self:
        """Build heads 1 … H−1 as copies of the trunk's last layer."""
        return cls(trunk.last_layer, count)

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


def _shift_layer_idx(layer: nn.Module, offset: int) -> None:
    """Give each head a slot of its own in a key-value cache, after the trunk's."""
    for module in layer.modules():
        layer_idx = getattr(module, "layer_idx", None)
        if isinstance(layer_idx, int):
            module.layer_idx = layer_idx + offset  # type: ignore[assignment]  # torch's stubs expect a tensor
