"""Small heads on the final hidden state, which share the unembedding (Cai et al., arXiv 2401.10774, section 2.1.1).

Each turns the final hidden state into the one that a later head predicts from, and is the identity at first.
"""

from abc import abstractmethod
from typing import Self

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from wmtp_models.heads.base import HeadInputs, Heads
from wmtp_models.heads.sparse_grad_linear import make_row_sparse
from wmtp_models.trunk.parts import TrunkParts


class ResidualHead(nn.Module):
    """h + silu(W h + b), Medusa's residual block; W and b are 0 at first."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it the identity."""
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `[B, S, D]` to `[B, S, D]`."""
        return hidden_states + nn.functional.silu(self.layer(hidden_states))


class LinearHead(nn.Module):
    """W h; W is the identity at first."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it the identity."""
        nn.init.eye_(self.layer.weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map `[B, S, D]` to `[B, S, D]`."""
        turned: Tensor = self.layer(hidden_states)
        return turned


class MedusaHeads(Heads):
    """H−1 small blocks, each on the trunk's final hidden state.

    Args:
        hidden_size: D.
        count: H−1.
    """

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.make_block(hidden_size) for _ in range(count))
        make_row_sparse(self)

    @staticmethod
    @abstractmethod
    def make_block(hidden_size: int) -> nn.Module:
        """Return one block, the identity."""

    @classmethod
    def beside(cls, trunk: TrunkParts, config: PreTrainedConfig) -> Self:
        """Build heads 1 … H−1, all the identity, where the unembedding is."""
        return cls(trunk.weight.shape[1], config.horizon - 1).to(device=trunk.weight.device, dtype=trunk.weight.dtype)

    def init_weights(self, module: nn.Module, causal_lm: PreTrainedModel) -> None:
        """Make a block the identity."""
        if isinstance(module, ResidualHead | LinearHead):
            module.reset_parameters()

    def forward(self, inputs: HeadInputs) -> list[Tensor]:
        """Return the hidden states of heads 1 … H−1, `[B, S, D]` each."""
        return [block(inputs.final) for block in self.blocks]

    def __len__(self) -> int:
        """Return H−1."""
        return len(self.blocks)


class ResidualHeads(MedusaHeads):
    """Residual blocks, as Medusa has them."""

    kind = "mlp"
    make_block = ResidualHead


class LinearHeads(MedusaHeads):
    """Matrices."""

    kind = "linear"
    make_block = LinearHead
