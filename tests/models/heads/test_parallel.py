import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from wmtp_models import MtpForCausalLM
from wmtp_models.heads.base import HeadInputs
from wmtp_models.heads.parallel import ParallelHeads
from wmtp_models.trunk.capture import LayerCall, layer_output
from wmtp_models.trunk.parts import TrunkParts, trunk_parts

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


def trunk_of(count: int) -> TrunkParts:
    return TrunkParts(PreTrainedModel, nn.ModuleList(Layer(index) for index in range(count)), nn.Identity())


def test_heads_are_copies_of_the_last_layer_each_with_its_own_slot_of_a_cache() -> None:
    trunk = trunk_of(6)
    last, heads = trunk.last_layer, ParallelHeads(trunk, 2)
    assert len(heads) == 2
    assert len({id(layer.weight) for layer in (last, *heads.layers)}) == 3
    assert [layer.layer_idx for layer in (last, *heads.layers)] == [5, 6, 7]
    assert [layer.attention.layer_idx for layer in (last, *heads.layers)] == [5, 6, 7]


def test_heads_are_called_as_the_last_layer_was_and_then_normed() -> None:
    heads = ParallelHeads(trunk_of(6), 2)
    for h, layer in enumerate(heads.layers):
        layer.weight.data.fill_(h + 2.0)
    call = LayerCall((torch.zeros(1, 2, 4),), {"scale": 10.0})
    states = heads(HeadInputs(call, torch.empty(0), torch.empty(0), None, nn.Identity(), norm=lambda x: -x))
    assert [state.unique().item() for state in states] == [-20, -30]


@pytest.mark.parametrize("packed", [False, True])
def test_losses_and_gradients_are_those_of_a_copy_of_the_last_layer_run_by_hand(
    family: str, packed: bool, make_causal_lm: Make, input_ids: Tensor
) -> None:
    """The trunk is run as plain transformers runs it; its last layer's input, caught there, goes through a copy."""
    causal_lm = make_causal_lm(family)
    policy = MtpForCausalLM.wrap(causal_lm, horizon=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = make_causal_lm(family)
    parts = trunk_parts(plain)
    by_hand = copy.deepcopy(parts.last_layer)
    by_hand.load_state_dict(policy.heads.layers[0].state_dict())
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12) if packed else None
    seen = []
    hook = parts.last_layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    final = plain.base_model(input_ids, position_ids=positions, use_cache=False).last_hidden_state
    hook.remove()
    (args, kwargs) = seen[0]
    state = parts.norm(layer_output(by_hand(*args, **kwargs)))
    logits = torch.stack([parts.unembedding(final), parts.unembedding(state)], dim=2)  # [2, 12, 2, V]
    assert torch.equal(policy.head_logits(input_ids, positions), logits)

    output = policy(input_ids, position_ids=positions)
    (output.ce * torch.tensor([1.0, 0.3])).sum().backward()
    loss = torch.zeros(())
    for h, coefficient in enumerate((1.0, 0.3)):
        targets = input_ids.roll(-h - 1, dims=1).masked_fill(~output.valid[..., h], -100)
        ce = cross_entropy(logits[:, :, h].flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        torch.testing.assert_close(output.ce[..., h], ce, rtol=1e-5, atol=1e-5)
        loss = loss + coefficient * ce.sum()
    loss.backward()
    expected = {f"causal_lm.{name}": p.grad for name, p in plain.named_parameters()}
    expected |= {f"heads.layers.0.{name}": p.grad for name, p in by_hand.named_parameters()}
    found = {name: p.grad for name, p in policy.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
