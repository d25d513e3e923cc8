import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_tokenizer
from wmtp_train.build_models import build_policy_from_settings, load_reference, prepare_layers, use_attention
from wmtp_train.engines.deepspeed.engine import shard_reference


@pytest.fixture
def tokenizer(tiny_home):
    return load_tokenizer(tiny_home / "tokenizer")


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_configuration_starts_a_policy_of_the_tokenizers_vocabulary(make_settings, tokenizer):
    policy = build_policy_from_settings(make_settings(), tokenizer, value_head=False)
    assert policy.config.trunk.vocab_size == len(tokenizer)
    assert (policy.config.horizon, policy.value_head, policy.dtype) == (3, None, torch.float32)


def test_attention_is_chosen_for_policy_and_reference(make_settings, tokenizer):
    cpu = torch.device("cpu")
    policy = build_policy_from_settings(make_settings(), tokenizer, value_head=False)
    reference = load_reference(make_settings(reference={"dtype": "bfloat16"}), tokenizer)
    assert use_attention(policy, "auto", cpu, torch.float32) == "policy attention: sdpa (what a cpu has)"
    assert use_attention(reference, "sdpa", cpu, torch.bfloat16) == "reference attention: sdpa (as set)"
    for model in (policy, reference):
        line = use_attention(model, "auto", torch.device("cuda"), torch.float32)
        assert (
            "no flash: FlashAttention computes in bfloat16 or float16, and this is float32; no flex: its heads" in line
        )
        with pytest.raises(UserError, match=r"model.attention is flash.*does not run on a cpu; set auto or sdpa"):
            use_attention(model, "flash", cpu, torch.bfloat16)


def test_the_seed_alone_fixes_the_weights(make_settings, tokenizer):
    def weights(seed):
        torch.rand(seed + 1)  # whatever was drawn before
        return build_policy_from_settings(make_settings(seed=seed), tokenizer, value_head=False)

    assert same_weights(weights(1), weights(1))
    assert not same_weights(weights(1), weights(2))


def test_a_source_is_wrapped_with_its_own_weights(make_settings, tokenizer, tiny_home):
    source = str(tiny_home / "reference")
    policy = build_policy_from_settings(
        make_settings(model={"source": source, "config": None}), tokenizer, value_head=True
    )
    plain = AutoModelForCausalLM.from_pretrained(source)
    assert same_weights(policy.unwrap(), plain)
    assert policy.value_head is not None


def test_a_trained_policy_goes_on_as_it_was(make_settings, tokenizer, tmp_path):
    first = build_policy_from_settings(make_settings(), tokenizer, value_head=False)
    first.save_pretrained(tmp_path / "policy")
    again = build_policy_from_settings(
        make_settings(model={"source": str(tmp_path / "policy"), "config": None}), tokenizer, value_head=False
    )
    assert isinstance(again, MtpForCausalLM)
    assert same_weights(first, again)


@pytest.mark.parametrize("to_trunk", [True, False])
def test_the_critics_setting_decides_where_its_gradient_ends(make_settings, tokenizer, to_trunk):
    policy = build_policy_from_settings(
        make_settings(critic={"gradient_to_trunk": to_trunk}), tokenizer, value_head=True
    )
    torch.nn.init.ones_(policy.value_head.value.weight)
    policy(torch.arange(8)[None]).values.sum().backward()
    reached = policy.causal_lm.get_input_embeddings().weight.grad
    assert (reached is not None and bool(reached.any())) is to_trunk


def test_gradient_checkpointing_changes_memory_and_not_gradients(make_settings, tokenizer):
    def gradients(checkpointing):
        settings = make_settings(model={"gradient_checkpointing": checkpointing})
        policy = build_policy_from_settings(settings, tokenizer, value_head=False).train()
        prepare_layers(policy, settings)
        runs = []
        policy.causal_lm.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
        policy(torch.arange(16)[None]).ce.sum().backward()
        assert len(runs) == (2 if checkpointing else 1)
        return [parameter.grad for parameter in policy.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_no_model_at_all_is_refused(make_settings, tokenizer):
    with pytest.raises(UserError, match=r"neither model\.source nor model\.config is set"):
        build_policy_from_settings(make_settings(model={"config": None}), tokenizer, value_head=False)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(make_settings, tokenizer, tiny_home):
    tokenizer.add_tokens(["<one more>"])
    settings = make_settings(model={"source": str(tiny_home / "reference"), "config": None})
    size = len(tokenizer)
    with pytest.raises(
        UserError, match=rf"tokenizer has {size} tokens and the model's vocabulary {size - 1}; data\.tok"
    ):
        build_policy_from_settings(settings, tokenizer, value_head=False)


def test_rows_that_change_their_rotary_embeddings_are_refused(make_settings, tokenizer):
    """transformers chooses by the longest row of a batch, which would make a document's loss hang on its neighbours."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    phi3 = {"model_type": "phi3", **sizes, "num_attention_heads": 2, "num_key_value_heads": 2}
    phi3 |= {"original_max_position_embeddings": 16, "rope_parameters": rope, "pad_token_id": None}
    settings = make_settings(model={"config": phi3})
    with pytest.raises(UserError, match="positions for 16 before its rotary embeddings change with the length"):
        build_policy_from_settings(settings, tokenizer, False)


def test_the_reference_is_frozen_and_of_its_own_dtype(make_settings, tokenizer):
    reference = load_reference(make_settings(reference={"dtype": "bfloat16"}), tokenizer)
    assert {(p.dtype, p.requires_grad) for p in reference.parameters()} == {(torch.bfloat16, False)}
    assert reference.token_losses(torch.arange(8)[None]).dtype == torch.float32
    assert not reference.train().training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sharded_reference_is_the_whole_one(processes, make_settings, tokenizer, dtype):
    def losses(sharded):
        reference = load_reference(make_settings(reference={"dtype": dtype, "sharded": sharded}), tokenizer)
        if sharded:
            shard_reference(reference)
        assert {(p.dtype, p.requires_grad) for p in reference.parameters()} == {(getattr(torch, dtype), False)}
        assert all(hasattr(p, "ds_tensor") == sharded for p in reference.parameters())
        assert not any(module.training for module in reference.train().modules())
        return [reference.token_losses(torch.arange(n, n + 8)[None]) for n in range(4)]

    for whole, sharded in zip(losses(False), losses(True), strict=True):
        assert torch.equal(sharded, whole)
        assert whole[0, 1:].min() > 0


@pytest.mark.parametrize("sharded", [False, True])
def test_a_live_reference_is_done_before_the_policy_begins(make_trainer, sharded):
    trainer = make_trainer(algo="rho1-wmtp", steps=2, data={"evaluate": {}}, reference={"sharded": sharded})
    formed, events = [], []

    def watch(_module, _args, output):
        assert not torch.is_grad_enabled()
        hidden = output if isinstance(output, torch.Tensor) else getattr(output, "last_hidden_state", None)
        if hidden is not None:
            formed.append(weakref.ref(hidden))

    def begin(*_):
        assert torch.is_grad_enabled()
        events.append(("policy", len(formed), sum(ref() is not None for ref in formed)))

    reference = trainer.loop.run.step.reference
    for module in reference.causal_lm.modules():
        module.register_forward_hook(watch)
    reference.register_forward_hook(lambda *_: events.append("reference"))
    trainer.loop.engine.policy.register_forward_pre_hook(begin)
    trainer.train()
    each = len(formed) // 2
    assert each > 10
    assert events == ["reference", ("policy", each, 0), "reference", ("policy", 2 * each, 0)]


def test_an_algorithm_that_compares_needs_a_reference(make_settings, tokenizer):
    settings = make_settings(algo="rho1-wmtp", reference={"source": None})
    with pytest.raises(UserError, match=r"rho1-wmtp .*reference\.source .*reference\.scores"):
        load_reference(settings, tokenizer)


def test_a_reference_of_another_tokenizer_is_refused(make_settings, tokenizer):
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(UserError, match="another tokenizer: 1 tokens differ, such as '<one more>'"):
        load_reference(make_settings(), tokenizer)


def test_a_reference_of_another_vocabulary_is_refused(make_settings, tokenizer, tiny_home, tmp_path):
    reference = AutoModelForCausalLM.from_pretrained(tiny_home / "reference")
    reference.resize_token_embeddings(len(tokenizer) + 6)
    reference.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    settings = make_settings(reference={"source": str(tmp_path / "larger")})
    with pytest.raises(UserError, match=f"a vocabulary of {len(tokenizer) + 6} tokens, the policy one of"):
        load_reference(settings, tokenizer, policy_vocab_size=len(tokenizer))
