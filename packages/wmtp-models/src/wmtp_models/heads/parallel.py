"""Parallel prediction heads in the place of a decoder's last layer (Gloeckle et al., arXiv 2404.19737, section 2)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from wmtp_models.heads.sparse_grad_linear import make_row_sparse
from wmtp_models.trunk.parts import layer_output


class HeadLayers(nn.Module):
    """H decoder layers of the trunk's own kind, all reading the trunk's output.

    It stands where the trunk had its last layer and passes on whatever the trunk calls that layer with (masks, rotary
    embeddings, positions, cache), so it knows no architecture. Head 0 is the layer that stood there; the others
    start as copies of it. Outside `collecting()` only head 0 runs, and the causal LM around it is the plain one.
    """

    def __init__(self, last_layer: nn.Module, horizon: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([last_layer, *(copy.deepcopy(last_layer) for _ in range(horizon - 1))])
        for offset, head in enumerate(self.heads):
            _shift_layer_idx(head, offset)
            if offset:  # head 0 learns from every token
                make_row_sparse(head)
        if hasattr(last_layer, "attention_type"):
            # Before transformers 5.1 the trunk reads from its layers which of its masks each one wants.
            self.attention_type = last_layer.attention_type
        self._collected: list[Tensor] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Head 0's output, exactly as the plain layer returns it."""
        output = self.heads[0](*args, **kwargs)
        if self._collected is not None:
            self._collected.extend(layer_output(head(*args, **kwargs)) for head in self.heads[1:])
        return output

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """Run every head in here; the list receives what heads 1 … H-1 give, `[B, S, D]` each, before the final norm.

        The list belongs to the caller and nothing is kept here, so hidden states live no longer than the caller's.
        """
        collected: list[Tensor] = []
        self._collected = collected
        try:
            yield collected
        finally:
            self._collected = None


def _shift_layer_idx(layer: nn.Module, offset: int) -> None:
    """Each head has a slot of its own in a key-value cache, after the trunk's."""
    for module in layer.modules():
        layer_idx = getattr(module, "layer_idx", None)
        if isinstance(layer_idx, int):
            module.layer_idx = layer_idx + offset  # type: ignore[assignment]  # torch's stubs expect a tensor
