import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_models import MtpForCausalLM
from wmtp_models.heads.base import HeadInputs
from wmtp_models.heads.parallel import ParallelHeads
from wmtp_models.trunk.capture import LayerCall, capture_call, layer_output

Make = Callable[..., PreTrainedModel]


class Layer(nn.Module):
    """Adds its weight, scaled by a keyword argument, and returns a tuple as some families do."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.attention = nn.Module()
        self.attention.layer_idx = layer_idx
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        return (hidden_states + scale * self.weight,)


def test_heads_are_copies_of_the_last_layer_each_with_its_own_slot_of_a_cache() -> None:
    last = Layer(5)
    heads = ParallelHeads(last, 2)
    assert len(heads) == 2
    assert len({id(layer.weight) for layer in (last, *heads.layers)}) == 3
    assert [layer.layer_idx for layer in (last, *heads.layers)] == [5, 6, 7]
    assert [layer.attention.layer_idx for layer in (last, *heads.layers)] == [5, 6, 7]


def test_heads_are_called_as_the_last_layer_was_and_then_normed() -> None:
    heads = ParallelHeads(Layer(5), 2)
    for h, layer in enumerate(heads.layers):
        layer.weight.data.fill_(h + 2.0)
    call = LayerCall((torch.zeros(1, 2, 4),), {"scale": 10.0})
    states = heads(HeadInputs(call, torch.empty(0), torch.empty(0), nn.Identity(), norm=lambda x: -x))
    assert [state.unique().item() for state in states] == [-20, -30]


def test_a_captured_call_is_the_callers_alone_even_after_an_error() -> None:
    layer = Layer(0)
    with capture_call(layer) as calls:
        layer(torch.ones(1), scale=3.0)
    assert calls[0].args[0].item() == 1
    assert calls[0].kwargs == {"scale": 3.0}
    assert calls[0].repeat(layer).item() == 4
    with pytest.raises(TypeError), capture_call(layer):
        layer("not a tensor")
    layer(torch.ones(1))
    assert len(calls) == 1
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("packed", [False, True])
def test_losses_are_those_of_a_copy_of_the_last_layer_run_by_hand(
    family: str, packed: bool, make_causal_lm: Make, input_ids: Tensor
) -> None:
    """The trunk is run as plain transformers runs it; its last layer's input, caught there, goes through a copy."""
    causal_lm = make_causal_lm(family)
    policy = MtpForCausalLM.wrap(causal_lm, horizon=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12) if packed else None
    by_hand = copy.deepcopy(policy.trunk.last_layer)
    by_hand.load_state_dict(policy.heads.layers[0].state_dict())
    seen = []
    hook = policy.trunk.last_layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    causal_lm(input_ids, position_ids=positions, use_cache=False)
    hook.remove()
    (args, kwargs) = seen[0]
    state = policy.trunk.norm(layer_output(by_hand(*args, **kwargs)))
    expected = causal_lm.get_output_embeddings()(state)
    assert torch.equal(policy.head_logits(input_ids, positions)[:, :, 1], expected)
