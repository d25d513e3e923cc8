import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from wmtp_core import UserError
from wmtp_models import MtpConfig, MtpForCausalLM, load_policy, load_wmtp
from wmtp_models.heads.sequential import tokens_ahead

Make = Callable[..., PreTrainedModel]
DEPTHS = 3
PACKED = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)


@pytest.fixture
def make_policy(make_causal_lm: Make) -> Callable[..., MtpForCausalLM]:
    """A policy whose modules are far from where they start."""

    def make(family: str = "llama", shared: bool = True, block: str = "trunk", **overrides: Any) -> MtpForCausalLM:
        causal_lm, how = make_causal_lm(family, **overrides), {"shared_module": shared, "head_block": block}
        policy = MtpForCausalLM.wrap(causal_lm, DEPTHS + 1, head_kind="sequential", **how)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in policy.heads.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return policy.eval()

    return make


def one_layer_decoder(policy: MtpForCausalLM, module: nn.Module) -> nn.Module:
    """The trunk's own decoder with a module's block and norm for all its layers and its final norm."""
    decoder = copy.deepcopy(policy.causal_lm.base_model)
    decoder.config.num_hidden_layers = 1
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = decoder.config.layer_types[-1:]
    decoder.layers = nn.ModuleList([copy.deepcopy(module.block)])
    name = "norm" if hasattr(decoder, "norm") else "final_layer_norm"
    setattr(decoder, name, copy.deepcopy(module.post_norm))
    return decoder


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("family", "block"),
    [(name, "trunk") for name in ("llama", "qwen2", "qwen3", "mistral", "gpt_neox")]
    + [(name, "qwen2") for name in ("llama", "qwen2", "qwen3")],
)
def test_depths_are_those_of_the_definition(
    family: str, block: str, shared: bool, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    """By transformers' own decoder of one layer, position by position as far as its tokens reach."""
    policy = make_policy(family, shared, block)
    states = policy._forward_heads(input_ids, None)
    hidden, length = states[0], input_ids.shape[1]
    assert torch.equal(hidden, policy.causal_lm.base_model(input_ids).last_hidden_state)
    assert len(policy.heads.layers) == (1 if shared else DEPTHS)
    for depth in range(1, DEPTHS + 1):
        module = policy.heads.layers[0 if shared else depth - 1]
        embedded = policy.get_input_embeddings()(input_ids[:, depth:])
        both = torch.cat([module.enorm(embedded), module.hnorm(hidden[:, : length - depth])], dim=-1)
        decoder = one_layer_decoder(policy, module)
        hidden = decoder(inputs_embeds=both @ module.eh_proj.weight.T, use_cache=False).last_hidden_state
        torch.testing.assert_close(states[depth][:, : length - depth], hidden, rtol=1e-4, atol=1e-5)


def test_no_depth_reads_another_document(
    family: str, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    policy = make_policy(family)
    other = input_ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 64
    states = policy._forward_heads(input_ids, PACKED)
    changed = policy._forward_heads(other, PACKED)
    alone = policy._forward_heads(input_ids[:, :5], None)
    for state, other_state, own in zip(states, changed, alone, strict=True):
        assert torch.equal(state[:, :5], other_state[:, :5])
        assert not torch.equal(state[:, 5:], other_state[:, 5:])
        torch.testing.assert_close(state[:, :5], own, rtol=1e-4, atol=1e-5)


def test_tokens_ahead_stay_in_their_document() -> None:
    ids = torch.tensor([[10, 11, 12, 20, 21, 30]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert tokens_ahead(ids, positions, 1).tolist() == [[11, 12, 12, 21, 21, 30]]
    assert tokens_ahead(ids, positions, 2).tolist() == [[12, 11, 12, 20, 21, 30]]
    assert tokens_ahead(ids, None, 4).tolist() == [[21, 30, 12, 20, 21, 30]]
    assert tokens_ahead(ids, None, 9).tolist() == ids.tolist()


@pytest.mark.parametrize("shared", [True, False])
def test_every_depth_teaches_its_module(
    shared: bool, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    policy = make_policy(shared=shared)
    gradients = []
    for depth in range(1, DEPTHS + 1):
        policy.zero_grad()
        policy(input_ids).ce[..., depth].sum().backward()
        gradients.append([bool(layer.eh_proj.weight.grad.any()) for layer in policy.heads.layers])
    # A deeper head reads the states of those before it, and so teaches their modules too.
    assert gradients == ([[True]] * DEPTHS if shared else [[True, False, False], [True, True, False], [True] * 3])


def test_a_new_module_is_the_mean_of_its_inputs_and_a_copy_of_the_last_layer(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm()
    with torch.no_grad():
        causal_lm.model.norm.weight.mul_(3)
    (module,) = MtpForCausalLM.wrap(causal_lm, head_kind="sequential").heads.layers
    x, y = torch.randn(2, 32)
    torch.testing.assert_close(module.eh_proj(torch.cat([x, y])), (x + y) / 2)
    assert module.enorm.weight.unique().tolist() == module.hnorm.weight.unique().tolist() == [1]
    assert torch.equal(module.post_norm.weight, causal_lm.model.norm.weight)
    for name, weight in causal_lm.model.layers[-1].state_dict().items():
        assert torch.equal(module.block.state_dict()[name], weight), name


@pytest.mark.parametrize("shared", [True, False])
def test_drafting_step_by_step_reads_what_training_reads(
    family: str, shared: bool, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    """Given the text's own tokens for drafts, every depth's state is that of one forward over all of the text."""
    policy = make_policy(family, shared)
    expected = policy._forward_heads(input_ids, None)
    cache, rows = DynamicCache(), torch.arange(2)
    fed = 0
    for end in (4, 5, 7):
        seen: list[Tensor] = []

        def propose(states: Tensor, end: int = end, seen: list[Tensor] = seen) -> Tensor:
            seen.append(states)
            return input_ids[:, end + len(seen) : end + len(seen) + 1]

        ids = input_ids[:, fed:end]
        positions, mask = torch.arange(fed, end).expand(2, -1), torch.ones(2, end)
        inputs = policy.forward_cached(ids, positions, mask, cache)
        last = torch.full((2,), end - fed - 1)
        policy.heads.draft(inputs, input_ids[:, fed + 1 : end + 1], rows, last, propose)
        for depth, state in enumerate(seen, start=1):
            torch.testing.assert_close(state[:, 0], expected[depth][:, end - 1], rtol=1e-4, atol=1e-5)
        assert len(seen) == DEPTHS
        fed = end


def test_it_is_saved_and_loaded_whole(
    make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor, tmp_path: Any
) -> None:
    for shared in (True, False):
        policy = make_policy(shared=shared)
        policy.save_pretrained(tmp_path / str(shared))
        again = load_wmtp(tmp_path / str(shared)).eval()
        assert again.config.shared_module is shared
        assert torch.equal(again.head_logits(input_ids), policy.head_logits(input_ids))
        with pytest.raises(UserError, match=f"set shared_module to {str(shared).lower()}"):
            load_policy(tmp_path / str(shared), DEPTHS + 1, head_kind="sequential", shared_module=not shared)


def test_a_qwen2_block_starts_with_what_the_last_layer_has(make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm("qwen3"), 2, head_kind="sequential", head_block="qwen2")
    last = policy.trunk.last_layer.state_dict()
    block = policy.heads.layers[0].block.state_dict()
    biases = {f"self_attn.{part}_proj.bias" for part in "qkv"}
    assert block.keys() - last.keys() == biases
    assert not any(block[name].any() for name in biases)
    assert last.keys() - block.keys() == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    assert all(torch.equal(block[name], last[name]) for name in block.keys() & last.keys())


@pytest.mark.parametrize(
    ("family", "overrides", "said"),
    [
        ("mistral", {}, "stands beside llama, qwen2, qwen3, and this is mistral"),
        ("qwen3", {"head_dim": 16}, "= 8 dimensions, and the trunk's have 16"),
    ],
)
def test_a_qwen2_block_that_cannot_stand_there_is_refused(
    family: str, overrides: dict[str, Any], said: str, make_causal_lm: Make
) -> None:
    with pytest.raises(UserError, match=f"{said}: set it to trunk"):
        MtpForCausalLM.wrap(make_causal_lm(family, **overrides), 2, head_kind="sequential", head_block="qwen2")


def test_a_qwen2_block_is_for_new_sequential_heads(make_causal_lm: Make) -> None:
    with pytest.raises(UserError, match="which is for new sequential heads: set it to trunk"):
        MtpForCausalLM.wrap(make_causal_lm(), 2, head_block="qwen2")


def test_the_trunk_stays_a_plain_model(make_policy: Callable[..., MtpForCausalLM], make_causal_lm: Make) -> None:
    assert make_policy().unwrap().state_dict().keys() == make_causal_lm().state_dict().keys()


def test_one_head_has_no_module(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 1, head_kind="sequential")
    assert len(policy.heads) == len(policy.heads.layers) == 0
    assert policy(input_ids).ce.shape == (2, 12, 1)
    assert MtpConfig.from_dict(policy.config.to_dict()).shared_module
