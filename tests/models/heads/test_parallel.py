import pytest
import torch
from torch import Tensor, nn

from wmtp_models.heads.parallel import HeadLayers


class Layer(nn.Module):
    """Adds its weight, scaled by a keyword argument, and returns a tuple as some families do."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.attention = nn.Module()
        self.attention.layer_idx = layer_idx
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.calls = 0

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        self.calls += 1
        return (hidden_states + scale * self.weight,)


def make(horizon: int) -> HeadLayers:
    heads = HeadLayers(Layer(layer_idx=5), horizon)
    for h, head in enumerate(heads.heads):
        head.weight.data.fill_(h + 1.0)
    return heads


def test_head_0_is_the_layer_that_stood_there() -> None:
    last = Layer(5)
    heads = HeadLayers(last, 3)
    assert heads.heads[0] is last
    assert len({id(head.weight) for head in heads.heads}) == 3


def test_every_head_has_its_own_layer_idx() -> None:
    heads = make(3)
    assert [head.layer_idx for head in heads.heads] == [5, 6, 7]
    assert [head.attention.layer_idx for head in heads.heads] == [5, 6, 7]


def test_collecting_runs_every_head_on_the_same_input() -> None:
    heads = make(3)
    with heads.collecting() as later:
        output = heads(torch.zeros(1, 2, 4), scale=10.0)
    assert isinstance(output, tuple)  # exactly what the plain layer returns
    assert [states.unique().item() for states in (output[0], *later)] == [10, 20, 30]


def test_outside_collecting_only_head_0_runs() -> None:
    heads = make(3)
    heads(torch.zeros(1, 2, 4))
    assert [head.calls for head in heads.heads] == [1, 0, 0]


def test_nothing_is_kept_even_after_an_error() -> None:
    heads = make(2)
    with heads.collecting() as later:
        heads(torch.zeros(1, 2, 4))
    assert len(later) == 1
    with pytest.raises(TypeError), heads.collecting():
        heads("not a tensor")
    assert not [name for name, value in vars(heads).items() if isinstance(value, list) and value]
    heads(torch.zeros(1, 2, 4))
    assert len(later) == 1


def test_mask_kind_is_passed_on_where_the_trunk_reads_it_from_its_layers() -> None:
    last = Layer(0)
    last.attention_type = "sliding_attention"
    assert HeadLayers(last, 2).attention_type == "sliding_attention"
