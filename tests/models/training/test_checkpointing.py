from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, add_adapters, checkpoint_activations, train_later_heads
from wmtp_models.heads import KINDS

Make = Callable[..., PreTrainedModel]
PACKED = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
HEADS = {
    **{kind: {"head_kind": kind} for kind in KINDS},
    "one module a depth": {"head_kind": "sequential", "shared_module": False},
    "qwen2 block": {"head_kind": "sequential", "head_block": "qwen2"},
}
TRAIN: dict[str, Callable[[MtpForCausalLM], None]] = {
    "all": lambda policy: None,
    "heads": train_later_heads,
    "lora": lambda policy: add_adapters(policy, 2, 4),
}


def count_calls(module: nn.Module, calls: list[str], name: str) -> None:
    """Note every call of a module, in the forward and in what the backward computes again."""
    module.register_forward_pre_hook(lambda *_: calls.append(name))


def step(policy: MtpForCausalLM, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor | None], int]:
    """Losses, gradients by name, and how many elements autograd kept for the backward."""
    kept: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in policy.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = policy(input_ids, position_ids=PACKED)
    (output.ce * torch.arange(1, 4)).sum().backward()
    return output.ce.detach(), {name: p.grad for name, p in policy.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("heads", HEADS)
def test_every_layer_runs_once_more_and_nothing_else_changes(
    heads: str, train: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    found = []
    for checkpointed in (False, True):
        policy = MtpForCausalLM.wrap(make_causal_lm(), 3, **HEADS[heads]).train()
        torch.manual_seed(1)
        TRAIN[train](policy)
        if checkpointed:
            checkpoint_activations(policy)
        calls: list[str] = []
        for layer in policy.trunk.layers:
            count_calls(layer.mlp, calls, "trunk")
        for name, module in policy.heads.named_modules():
            if name.endswith((".mlp", ".eh_proj")):
                count_calls(module, calls, name.split(".")[-1])
        found.append((*step(policy, input_ids), calls))
    (ce, gradients, kept, once), (ce_again, gradients_again, kept_less, calls) = found
    assert torch.equal(ce, ce_again)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        again = gradients_again[name]
        assert (gradient is None) == (again is None), name
        assert gradient is None or torch.equal(gradient, again), name
    # A layer below which nothing learns has no backward, and so nothing to run again for: the trunk of `train: heads`.
    for name in set(once):
        learns = name != "trunk" or train != "heads"
        assert calls.count(name) == (1 + learns) * once.count(name), name
    decoder_layers = heads not in ("mlp", "linear")
    assert once.count("trunk") == 3
    assert once.count("mlp") == (2 if decoder_layers else 0)
    assert once.count("eh_proj") == (2 if policy.heads.kind == "sequential" else 0)
    if decoder_layers or train != "heads":
        assert kept_less < kept / 2


def test_layers_that_cannot_run_again_are_refused(make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3)
    policy.trunk.layers[1] = nn.Identity()
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing: .* LlamaForCausalLM again: set it to false"):
        checkpoint_activations(policy)
