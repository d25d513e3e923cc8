import pytest
import torch
from torch import Tensor, nn

from wmtp_models.trunk.capture import capture_call


class Layer(nn.Module):
    """Scales its input, and returns a tuple as some families do."""

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (hidden_states * scale,)


def test_a_call_is_repeated_on_another_layer() -> None:
    layer = Layer()
    with capture_call(layer) as calls:
        layer(torch.ones(1), scale=3.0)
    assert calls[0].args[0].item() == 1
    assert calls[0].kwargs == {"scale": 3.0}
    assert calls[0].repeat(Layer()).item() == 3


def test_what_is_captured_is_the_callers_alone_even_after_an_error() -> None:
    layer = Layer()
    with capture_call(layer) as calls:
        layer(torch.ones(1))
    with pytest.raises(TypeError), capture_call(layer):
        layer(None)
    layer(torch.ones(1))
    assert len(calls) == 1
    assert not layer._forward_pre_hooks
