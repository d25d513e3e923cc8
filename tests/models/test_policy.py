import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from wmtp_core import linear_cross_entropy, mtp_targets
from wmtp_models import MtpForCausalLM

Make = Callable[..., PreTrainedModel]


def diverge(policy: MtpForCausalLM) -> MtpForCausalLM:
    """Make heads ≥ 1 and the value head differ, as training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for head in policy.heads.layers:
            for parameter in head.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if policy.value_head is not None:
            torch.nn.init.normal_(policy.value_head.value.weight)
    return policy


@pytest.mark.parametrize("tied", [False, True])
def test_head_0_is_the_plain_model_bit_for_bit(
    family: str, tied: bool, make_causal_lm: Make, input_ids: Tensor
) -> None:
    causal_lm = make_causal_lm(family, tie_word_embeddings=tied)
    plain = causal_lm.base_model(input_ids, use_cache=False).last_hidden_state
    plain_logits = causal_lm(input_ids, use_cache=False).logits
    targets, _ = mtp_targets(input_ids, 1)
    plain_ce = linear_cross_entropy(plain.flatten(0, 1), causal_lm.get_output_embeddings().weight, targets.flatten())
    plain_ce = plain_ce.view_as(input_ids).detach()

    policy = MtpForCausalLM.wrap(causal_lm)
    logits = policy.head_logits(input_ids)
    assert torch.equal(logits[:, :, 0], plain_logits)
    for h in range(1, 4):
        assert torch.equal(logits[:, :, h], plain_logits), "heads start as copies of the last layer"
    assert torch.equal(policy(input_ids).ce[:, :, 0], plain_ce)
    assert plain_ce.mean() > 1
    dense = torch.nn.functional.cross_entropy(
        plain_logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
    )
    assert torch.equal(policy(input_ids).ce[:, :-1, 0].flatten(), dense)


def test_losses_are_those_of_each_heads_logits(family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family), horizon=3))
    labels = input_ids.clone()
    labels[0, :4] = -100
    output = policy(input_ids, labels)
    logits = policy.head_logits(input_ids)
    assert logits.shape == (2, 12, 3, 64)
    log_p = logits.double().log_softmax(dim=-1)
    for b in range(2):
        for t in range(12):
            for h in range(3):
                p = t + h + 1
                valid = p < 12 and labels[b, p] != -100
                assert output.valid[b, t, h] == valid
                expected = -log_p[b, t, h, labels[b, p]] if valid else torch.tensor(0.0).double()
                torch.testing.assert_close(output.ce[b, t, h].double(), expected, rtol=1e-5, atol=1e-5)
    assert output.ce.dtype == torch.float32
    assert output.values is None


@pytest.mark.parametrize("told_by", ["document_ids", "position_ids", "both"])
def test_packed_documents_do_not_see_each_other(
    family: str, told_by: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family), value_head=True))
    row = input_ids[:1]
    lengths = [5, 1, 6]
    layout = {
        "document_ids": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
    }
    packed = policy(row, **(layout if told_by == "both" else {told_by: layout[told_by]}))
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        alone = policy(row[:, own])
        assert torch.equal(packed.valid[:, own], alone.valid)
        torch.testing.assert_close(packed.ce[:, own], alone.ce, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed.values[:, own], alone.values, rtol=1e-5, atol=1e-5)
        start += length
    joined = policy(row)  # the control: as one document the later ones do change
    assert (joined.ce - packed.ce)[:, 6:11][packed.valid[:, 6:11]].abs().max() > 0.01


def test_padding_changes_no_loss(family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family)))
    alone = policy(input_ids[:, :7])
    mask = (torch.arange(12) < 7).long().expand(2, 12)
    right = policy(input_ids, attention_mask=mask)
    torch.testing.assert_close(right.ce[:, :7], alone.ce, rtol=1e-5, atol=1e-5)
    assert not right.valid[:, 7:].any()
    left = policy(torch.cat([input_ids[:, 7:], input_ids[:, :7]], dim=1), attention_mask=mask.flip(1))
    torch.testing.assert_close(left.ce[:, 5:], alone.ce, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("h", [0, 2])
def test_gradients_reach_the_trunk_and_that_head_only(
    family: str, h: int, make_causal_lm: Make, input_ids: Tensor
) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family)))
    policy(input_ids).ce[:, :, h].sum().backward()
    for k, head in enumerate([policy.trunk.last_layer, *policy.heads.layers]):
        weights = [p for p in head.parameters() if p.ndim == 2]
        reached = [p.grad is not None and bool(p.grad.any()) for p in weights]
        assert all(reached) if k == h else not any(reached)
    for module in (policy.get_input_embeddings(), policy.get_output_embeddings()):
        assert module.weight.grad.any()
    heads = {id(p) for head in (policy.trunk.last_layer, policy.heads) for p in head.parameters()}
    others = [p for p in policy.parameters() if id(p) not in heads and p.ndim == 2]
    assert len(others) > 4
    assert all(p.grad is not None and p.grad.any() for p in others)


@pytest.mark.parametrize("flows", [False, True])
def test_value_gradient_stops_at_the_trunk_unless_asked(flows: bool, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(), value_head=True))
    policy.config.value_gradient_to_trunk = flows
    values = policy(input_ids).values
    assert values.shape == input_ids.shape
    assert values.any()
    values.sum().backward()
    assert all(p.grad is not None for p in policy.value_head.parameters())
    trunk_grads = [p.grad is not None and bool(p.grad.any()) for p in policy.causal_lm.model.layers[0].parameters()]
    assert all(trunk_grads) if flows else not any(trunk_grads)
    later = [p.grad for head in policy.heads.layers for p in head.parameters()]
    assert not any(grad is not None and grad.any() for grad in later)


def test_values_read_the_last_hidden_state(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(), value_head=True))
    hidden = policy.causal_lm.base_model(input_ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(policy(input_ids).values, policy.value_head(hidden))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_nothing(family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    gradients = []
    for checkpointing in (False, True):
        policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family, **no_dropout))).train()
        calls: list[str] = []
        for module in policy.heads.layers[0].children():
            module.register_forward_pre_hook(lambda module, _args, calls=calls: calls.append(type(module).__name__))
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        output = policy(input_ids)
        (output.ce * torch.arange(4)).sum().backward()
        mlp = next(name for name in calls if "MLP" in name)
        assert calls.count(mlp) == 1 + checkpointing, "a checkpointed head runs a second time in the backward"
        gradients.append({name: p.grad for name, p in policy.named_parameters()})
    assert all(grad is not None for grad in gradients[0].values())
    for name, grad in gradients[0].items():
        assert torch.equal(grad, gradients[1][name]), name


def test_no_hidden_state_outlives_the_forward(make_causal_lm: Make) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm())
    ids = torch.randint(64, (3, 17))  # sizes that no parameter has

    def alive() -> int:
        gc.collect()
        tensors = (o for o in gc.get_objects() if type(o) is Tensor)
        return sum(t.dtype == torch.float32 and t.shape[:2] == (3, 17) for t in tensors)

    with torch.no_grad():
        output = policy(ids)
    assert alive() == 1, "only the losses"
    output = policy(ids)
    output.ce.sum().backward()
    del output
    assert alive() == 0


@pytest.mark.parametrize("tied", [False, True])
def test_saves_and_loads_exactly(
    family: str, tied: bool, make_causal_lm: Make, input_ids: Tensor, tmp_path: Path
) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family, tie_word_embeddings=tied), horizon=3, value_head=True))
    policy.save_pretrained(tmp_path)
    loaded, report = MtpForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    saved = policy.state_dict()
    assert saved.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied
    assert torch.equal(policy(input_ids).ce, loaded(input_ids).ce)
    assert torch.equal(policy(input_ids).values, loaded(input_ids).values)


@pytest.mark.slow
def test_round_trip_in_a_fresh_process(make_causal_lm: Make, input_ids: Tensor, tmp_path: Path) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(tie_word_embeddings=True), value_head=True))
    policy.save_pretrained(tmp_path)
    torch.save((input_ids, *policy(input_ids)[:3]), tmp_path / "expected.pt")
    program = f"""
import torch, wmtp_models
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained({str(tmp_path)!r})
assert type(config) is wmtp_models.MtpConfig and config.trunk.model_type == "llama" and config.horizon == 4
input_ids, ce, valid, values = torch.load({str(tmp_path / "expected.pt")!r})
output = AutoModel.from_pretrained({str(tmp_path)!r})(input_ids)
assert torch.equal(output.ce, ce) and torch.equal(output.valid, valid) and torch.equal(output.values, values)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for word in ("missing", "unexpected", "newly initialized", "warn"):
        assert word not in run.stderr.lower()


def test_configuration_keeps_what_the_trunk_was_built_with(make_causal_lm: Make, tmp_path: Path) -> None:
    causal_lm = make_causal_lm(attn_implementation="eager", dtype="bfloat16")
    assert causal_lm.dtype == torch.bfloat16
    policy = MtpForCausalLM.wrap(causal_lm, horizon=2, value_head=True)
    assert policy.causal_lm.config._attn_implementation == "eager"
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    policy.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.horizon, config.value_head, config.value_gradient_to_trunk) == (2, True, False)


@pytest.mark.parametrize("tied", [False, True])
def test_the_trunk_is_left_alone_and_unwrap_is_the_model_itself(
    family: str, tied: bool, make_causal_lm: Make, input_ids: Tensor, tmp_path: Path
) -> None:
    causal_lm = make_causal_lm(family, tie_word_embeddings=tied)
    expected = causal_lm(input_ids, use_cache=False).logits
    names, modules = list(causal_lm.state_dict()), [type(module) for module in causal_lm.modules()]
    policy = diverge(MtpForCausalLM.wrap(causal_lm))
    policy(input_ids)
    plain = policy.unwrap()
    assert plain is causal_lm
    assert list(plain.state_dict()) == names
    assert [type(module) for module in plain.modules()] == modules
    assert torch.equal(plain(input_ids, use_cache=False).logits, expected)
    assert [name.removeprefix("causal_lm.") for name in policy.state_dict() if name.startswith("causal_lm.")] == names
    plain.save_pretrained(tmp_path)
    assert torch.equal(type(causal_lm).from_pretrained(tmp_path)(input_ids, use_cache=False).logits, expected)


def test_wrapping_draws_no_weight_anew(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm()
    for module in causal_lm.modules():  # as after building on the meta device and assigning a state dict
        module.__dict__.pop("_is_hf_initialized", None)
    before = {name: tensor.clone() for name, tensor in causal_lm.state_dict().items()}
    plain = MtpForCausalLM.wrap(causal_lm).unwrap()
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_value_head_can_come_and_go(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm())
    policy.add_value_head()
    assert policy.config.value_head
    assert policy(input_ids).values is not None
    policy.remove_value_head()
    assert not policy.config.value_head
    assert policy(input_ids).values is None


def test_one_forward_of_the_trunk_a_batch(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm())
    calls: list[int] = []
    policy.causal_lm.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    policy(input_ids)
    assert len(calls) == 1


def test_horizon_1_is_plain_next_token_prediction(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), horizon=1)
    names = [name for name, _ in policy.named_parameters()]
    assert len(names) == len(list(make_causal_lm().parameters()))
    assert policy(input_ids).ce.shape == (2, 12, 1)


def test_predictions_are_each_heads_most_probable_tokens(family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family), horizon=3))
    output = policy(input_ids, predict=True)
    assert torch.equal(output.predicted, policy.head_logits(input_ids).argmax(dim=-1))
    assert not torch.equal(output.predicted[..., 0], output.predicted[..., 1])
    plain = policy(input_ids)
    assert plain.predicted is None
    assert torch.equal(plain.ce, output.ce)
