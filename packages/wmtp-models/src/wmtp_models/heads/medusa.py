"""Small heads on the final hidden state, which share the unembedding (Cai et al., arXiv 2401.10774, section 2.1.1).

Each turns the final hidden state into the one that a later head predicts from, and is the identity at first.
"""

from torch import Tensor, nn

from wmtp_core import UserError
from wmtp_models.heads.sparse_grad_linear import make_row_sparse


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
        """`[B, S, D]` to `[B, S, D]`."""
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
        """`[B, S, D]` to `[B, S, D]`."""
        turned: Tensor = self.layer(hidden_states)
        return turned


LAYER = "layer"
STATE_HEADS: dict[str, type[ResidualHead] | type[LinearHead]] = {"mlp": ResidualHead, "linear": LinearHead}
HEAD_KINDS = (LAYER, *STATE_HEADS)


def require_head_kind(kind: str) -> None:
    """Refuse what is not a kind of heads.

    Raises:
        UserError: it is none.
    """
    if kind not in HEAD_KINDS:
        raise UserError(f"head_kind is {kind!r}: choose one of {', '.join(HEAD_KINDS)}")


def state_heads(kind: str, hidden_size: int, count: int) -> nn.ModuleList:
    """So many heads of a kind; of `layer` there are none, as these are layers of the trunk's kind."""
    heads = nn.ModuleList([] if kind == LAYER else [STATE_HEADS[kind](hidden_size) for _ in range(count)])
    make_row_sparse(heads)
    return heads
