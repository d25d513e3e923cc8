"""A model without the values of its parameters, on ranks that have not built it."""

import pytest
import torch

from wmtp_models import add_adapters, build_policy, train_later_heads
from wmtp_train.skeleton import give_memory, pack_skeleton, unpack_skeleton

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = [
    {"model_type": "llama", **SMALL, "tie_word_embeddings": True},
    {"model_type": "gemma2", **SMALL, "num_key_value_heads": 1, "head_dim": 16},
    {
        "model_type": "qwen3_moe",
        **SMALL,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
]
CHANGES = {
    "all": lambda policy: None,
    "heads": train_later_heads,
    "lora": lambda policy: add_adapters(policy, 2, 4),
}


@pytest.mark.parametrize("kind", ["layer", "sequential", "mlp"])
@pytest.mark.parametrize("config", MODELS, ids=lambda config: config["model_type"])
@pytest.mark.parametrize("train", CHANGES)
def test_with_the_values_it_is_the_model(config, kind, train):
    policy = build_policy(config, 60, 3, value_head=True, head_kind=kind)
    CHANGES[train](policy)
    packed = pack_skeleton(policy)
    assert len(packed) < 10**5
    copy = unpack_skeleton(packed)
    parameters, empty = dict(policy.named_parameters()), dict(copy.named_parameters())
    assert list(parameters) == list(empty)
    for name, parameter in empty.items():
        assert parameter.is_meta
        assert parameter.requires_grad == parameters[name].requires_grad
        give_memory(parameter, parameter.dtype, torch.device("cpu"))
        parameter.data.copy_(parameters[name].data)
    assert all(new is old for new, old in zip(copy.parameters(), empty.values(), strict=True)), "the same objects"
    tokens = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(0))
    expected, found = policy(tokens), copy(tokens)
    assert torch.equal(found.ce, expected.ce)
    expected.ce.sum().backward()
    found.ce.sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is None or torch.equal(parameter.grad, empty[name].grad), name


def test_buffers_come_along_and_tied_parameters_stay_tied():
    policy = build_policy(MODELS[0], 60)
    copy = unpack_skeleton(pack_skeleton(policy))
    for (name, buffer), (_, other) in zip(policy.named_buffers(), copy.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert copy.get_input_embeddings().weight is copy.get_output_embeddings().weight
