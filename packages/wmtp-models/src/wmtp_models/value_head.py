"""The critic's value head: how good is the text so far."""

from torch import Tensor, nn


class ValueHead(nn.Module):
    """LayerNorm, one hidden layer, a scalar. Its values are exactly 0 before the first step."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.value = nn.Linear(hidden_size, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the hidden layer anew and set the last one to 0."""
        self.norm.reset_parameters()
        self.hidden.reset_parameters()
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return `[B, S, D]` to float32 `[B, S]`, in the units of the reward."""
        values: Tensor = self.value(self.activation(self.hidden(self.norm(hidden_states))))  # [B, S, 1]
        return values.squeeze(-1).float()
