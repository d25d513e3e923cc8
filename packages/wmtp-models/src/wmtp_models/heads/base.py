"""The port for heads: what stands beside a trunk and predicts the tokens after the next one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from wmtp_models.heads.sparse_grad_linear import expect_rows
from wmtp_models.trunk.capture import LayerCall
from wmtp_models.trunk.parts import TrunkParts
from wmtp_models.trunk.row_slices import WholeRows


@dataclass(frozen=True)
class HeadInputs:
    """What one forward of a trunk offers to its heads.

    Attributes:
        last_layer: the call of the trunk's last layer, or of the one that the heads name in `called_as`.
        final: `[B, S, D]`, the trunk's final hidden state, normed: what head 0 predicts from.
        input_ids: int64 `[B, S]`, of whole rows.
        position_ids: int64 `[B, S]`, which restart at each document; None: a row is one document.
        embedding: the input embedding.
        norm: the final norm.
        part: from what is known of whole rows to the tokens that this process computes, see `trunk.row_slices`.
    """

    last_layer: LayerCall
    final: Tensor
    input_ids: Tensor
    position_ids: Tensor | None
    embedding: Callable[[Tensor], Tensor]
    norm: nn.Module
    part: Callable[[Tensor], Tensor] = WholeRows().part

    def detached(self) -> "HeadInputs":
        """Return the same inputs, through which nothing learns; of the norm its parameters are left."""
        return replace(
            self,
            last_layer=self.last_layer.detached(),
            final=self.final.detach(),
            embedding=lambda input_ids: self.embedding(input_ids).detach(),
        )


Propose = Callable[[Tensor], Tensor]
"""From the hidden states `[R, n, D]` of the next n heads to the tokens that they draft, int64 `[R, n]`."""


class Heads(nn.Module, ABC):
    """Heads 1 … H−1 of one kind.

    Attributes:
        kind: its name in a configuration.
        like_last_layer: heads are decoder layers as the trunk's last one, which is then head 0 like the others.
        called_as: the index of the trunk's layer whose call they repeat.
    """

    kind: ClassVar[str]
    like_last_layer: ClassVar[bool] = False
    called_as: int = -1

    @classmethod
    @abstractmethod
    def beside(cls, trunk: TrunkParts, config: PreTrainedConfig) -> Self:
        """Build the heads that an `MtpConfig` describes beside a trunk, on its device and in its dtype."""

    @abstractmethod
    def init_weights(self, module: nn.Module, causal_lm: PreTrainedModel) -> None:
        """Initialize the weights of one module of these heads, as transformers asks for each that was not loaded."""

    @abstractmethod
    def forward(self, inputs: HeadInputs) -> list[Tensor]:
        """Return the hidden states that heads 1 … H−1 predict from by the shared unembedding, `[B, S, D]` each.

        Where the trunk was called with a key-value cache, so were the heads: each has slots of its own there.
        """

    def expect(self, share: float) -> None:
        """Say which share of its predictions each head will learn from at most, about; it never changes a gradient."""
        for part in self.parts_that_skip_rows():
            expect_rows(part, share)

    def parts_that_skip_rows(self) -> Iterable[nn.Module]:
        """Return the modules whose outputs have no gradient where a head has none: what no later head reads."""
        return self.children()

    def draft(self, inputs: HeadInputs, following: Tensor, rows: Tensor, last: Tensor, propose: Propose) -> None:
        """Draft one token by each head, in their order, after a forward with a key-value cache.

        By default from one forward of all heads: they do not read each other's drafts.

        Args:
            inputs: of the trunk's forward over Q tokens.
            following: int64 `[B, Q]`, the token after each of them, as far as it is known: up to `last`.
            rows: int64 `[R]`, the rows that go on.
            last: int64 `[R]`, where in each of them the text so far ends.
            propose: draws the tokens.
        """
        states = torch.stack(self(inputs), dim=2)  # [B, Q, H-1, D]
        propose(states[rows, last])

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of heads after the first, H−1."""


def set_layer_idx(layer: nn.Module, index: int) -> None:
    """Give a decoder layer a slot of its own in a key-value cache; the trunk's come first."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = index  # type: ignore[assignment]  # torch's stubs expect a tensor
