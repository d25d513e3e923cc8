"""The port for heads: what stands beside a trunk and predicts the tokens after the next one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_models.trunk.capture import LayerCall
from wmtp_models.trunk.parts import TrunkParts


@dataclass(frozen=True)
class HeadInputs:
    """What one forward of a trunk offers to its heads.

    Attributes:
        last_layer: the call of the trunk's last layer.
        final: `[B, S, D]`, the trunk's final hidden state, normed: what head 0 predicts from.
        input_ids: int64 `[B, S]`.
        embedding: the input embedding.
        norm: the final norm.
    """

    last_layer: LayerCall
    final: Tensor
    input_ids: Tensor
    embedding: nn.Module
    norm: nn.Module


class Heads(nn.Module, ABC):
    """Heads 1 … H−1 of one kind.

    Attributes:
        kind: its name in a configuration.
        like_last_layer: heads are decoder layers as the trunk's last one, which is then head 0 like the others.
    """

    kind: ClassVar[str]
    like_last_layer: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def beside(cls, trunk: TrunkParts, count: int) -> Self:
        """Build `count` heads, H−1, beside a trunk, on its device and in its dtype."""

    @abstractmethod
    def init_weights(self, module: nn.Module, causal_lm: PreTrainedModel) -> None:
        """Initialize the weights of one module of these heads, as transformers asks for each that was not loaded."""

    @abstractmethod
    def forward(self, inputs: HeadInputs) -> list[Tensor]:
        """Return the hidden states that heads 1 … H−1 predict from by the shared unembedding, `[B, S, D]` each.

        Where the trunk was called with a key-value cache, so were the heads: each has slots of its own there.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of heads after the first, H−1."""
