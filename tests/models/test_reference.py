import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmtp_core import UserError, shift_to_heads
from wmtp_models import MtpForCausalLM, ReferenceModel, require_same_tokenizer, weights_fingerprint
from wmtp_models.formats import consolidated

Make = Callable[..., PreTrainedModel]
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
LENGTHS = [5, 1, 6]


def packed_layout() -> dict[str, Tensor]:
    """Two rows of the same three documents."""
    return {
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS]).expand(2, -1),
        "document_ids": torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS)).expand(2, -1),
    }


def oracle(causal_lm: PreTrainedModel, document: Tensor) -> Tensor:
    """−log P of each token of one document `[n]` after the ones before it, each from a forward of its own."""
    losses = [torch.tensor(0.0)]
    for p in range(1, len(document)):
        log_p = causal_lm(document[None, :p], use_cache=False).logits[0, -1].double().log_softmax(dim=-1)
        losses.append(-log_p[document[p]].float())
    return torch.stack(losses)


@pytest.mark.parametrize("told_by", ["position_ids", "document_ids", "both"])
def test_losses_are_indexed_by_the_token_predicted(
    family: str, told_by: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    causal_lm = make_causal_lm(family)
    layout = packed_layout()
    reference = ReferenceModel(causal_lm)
    losses = reference.token_losses(input_ids, **(layout if told_by == "both" else {told_by: layout[told_by]}))
    expected = [torch.cat([oracle(causal_lm, document) for document in row.split(LENGTHS)]) for row in input_ids]
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert (losses == 0).nonzero()[:, 1].tolist() == [0, 5, 6] * 2


def test_padding_costs_nothing_and_changes_nothing(make_causal_lm: Make, input_ids: Tensor) -> None:
    reference = ReferenceModel(make_causal_lm())
    mask = (torch.arange(12) < 8).long().expand(2, 12)
    losses = reference.token_losses(input_ids, attention_mask=mask)
    torch.testing.assert_close(losses[:, :8], reference.token_losses(input_ids[:, :8]), rtol=1e-5, atol=1e-5)
    assert not losses[:, 8:].any()


def test_policy_as_its_own_reference_has_no_excess_on_head_0(
    family: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    reference = ReferenceModel(make_causal_lm(family))
    output = MtpForCausalLM.wrap(make_causal_lm(family))(input_ids, **packed_layout())
    reference_ce = shift_to_heads(reference.token_losses(input_ids, **packed_layout()), 4)
    assert output.valid[..., 0].sum() == 2 * (4 + 0 + 5)
    torch.testing.assert_close(output.ce[..., 0], reference_ce[..., 0], rtol=1e-5, atol=1e-5)


def test_one_forward_a_call_without_gradients(make_causal_lm: Make, input_ids: Tensor) -> None:
    reference = ReferenceModel(make_causal_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train())
    calls: list[int] = []
    for module in (reference.causal_lm.base_model, *reference.causal_lm.base_model.h):
        module.register_forward_hook(lambda *_: calls.append(1))
    losses = reference.token_losses(input_ids)
    assert len(calls) == 1 + 3
    assert not losses.requires_grad
    assert not any(p.requires_grad for p in reference.parameters())
    reference.train()
    assert not any(module.training for module in reference.modules())
    assert torch.equal(reference.token_losses(input_ids), losses), "no dropout, ever"


def test_a_forward_keeps_nothing_alive_but_its_losses(family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    reference = ReferenceModel(make_causal_lm(family))
    formed: list[weakref.ref[Tensor]] = []

    def watch(_module: Any, _args: Any, output: Any) -> None:
        formed.extend(weakref.ref(tensor) for tensor in (output, *_tensors(output)) if isinstance(tensor, Tensor))

    for module in reference.causal_lm.modules():
        module.register_forward_hook(watch)
    # A policy's activations are wanted when a reference is called beside it; the reference's never are.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail):
        losses = reference.token_losses(input_ids)
    assert losses.grad_fn is None
    assert len(formed) > 3 * 4
    assert [tensor.shape for tensor in (ref() for ref in formed) if tensor is not None] == []


def _tensors(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple) else ()


def test_bfloat16_reference_gives_float32_losses(make_causal_lm: Make, input_ids: Tensor, tmp_path: Path) -> None:
    make_causal_lm().save_pretrained(tmp_path)
    exact = ReferenceModel.load(tmp_path).token_losses(input_ids)
    reference = ReferenceModel.load(tmp_path, torch.bfloat16)
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    losses = reference.token_losses(input_ids)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.1, atol=0.2)


def test_head_0_of_a_wmtp_folder(make_causal_lm: Make, input_ids: Tensor, tmp_path: Path) -> None:
    expected = ReferenceModel(make_causal_lm()).token_losses(input_ids)
    MtpForCausalLM.wrap(make_causal_lm(), value_head=True).save_pretrained(tmp_path)
    reference = ReferenceModel.load(tmp_path)
    assert torch.equal(reference.token_losses(input_ids), expected)
    assert sum(p.numel() for p in reference.parameters()) == make_causal_lm().num_parameters()


def test_another_vocabulary_size_is_refused(make_causal_lm: Make, tmp_path: Path) -> None:
    make_causal_lm().save_pretrained(tmp_path)
    ReferenceModel.load(tmp_path, policy_vocab_size=64)
    with pytest.raises(UserError, match="vocabulary of 64 tokens, the policy one of 65: train or choose"):
        ReferenceModel.load(tmp_path, policy_vocab_size=65)


def test_another_tokenizer_is_refused(make_causal_lm: Make, make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    make_causal_lm().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer in"):
        ReferenceModel.load(tmp_path, policy_tokenizer=make_tokenizer())
    make_tokenizer().save_pretrained(tmp_path)
    ReferenceModel.load(tmp_path, policy_tokenizer=make_tokenizer())
    with pytest.raises(UserError, match=r"another tokenizer: \d+ tokens differ, such as .* in the policy\): train"):
        ReferenceModel.load(tmp_path, policy_tokenizer=make_tokenizer("completely other words here"))


def test_same_vocabulary_cut_by_another_rule_is_refused(make_tokenizer: MakeTokenizer) -> None:
    ours, theirs = make_tokenizer("word"), make_tokenizer("word", prefix_space=True)
    theirs.backend_tokenizer.model = ours.backend_tokenizer.model
    assert ours.get_vocab() == theirs.get_vocab()
    with pytest.raises(UserError, match="same vocabulary, another pre_tokenizer"):
        require_same_tokenizer(ours, theirs, "reference")


def test_truncation_of_an_earlier_call_is_no_difference(make_tokenizer: MakeTokenizer) -> None:
    ours, theirs = make_tokenizer(), make_tokenizer()
    theirs.pad_token = theirs.eos_token
    theirs("a tiny test", truncation=True, max_length=3, padding="max_length")
    assert ours.backend_tokenizer.to_str() != theirs.backend_tokenizer.to_str()
    require_same_tokenizer(ours, theirs, "reference")


def test_fingerprint_is_of_weights_and_config_alone(make_causal_lm: Make, tmp_path: Path) -> None:
    first = tmp_path / "first"
    make_causal_lm().save_pretrained(first)
    fingerprint = weights_fingerprint(first)
    assert len(fingerprint) == 64
    second = tmp_path / "elsewhere"
    shutil.copytree(first, second)
    (second / "notes.txt").write_text("of no weight")
    assert weights_fingerprint(str(second)) == fingerprint
    for name in ("model.safetensors", "config.json"):
        content = bytearray((second / name).read_bytes())
        content[-2] ^= 1
        (second / name).write_bytes(bytes(content))
        assert weights_fingerprint(second) != fingerprint
        shutil.copy(first / name, second / name)
    assert weights_fingerprint(second) == fingerprint
    (second / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"does not hold a config.json and \*.safetensors .*, or a GGUF file"):
        weights_fingerprint(second)


def test_fingerprint_of_the_published_format(make_causal_lm: Make, tmp_path: Path) -> None:
    consolidated.save(MtpForCausalLM.wrap(make_causal_lm(), 2), tmp_path)
    ReferenceModel.load(tmp_path)
    fingerprint = weights_fingerprint(tmp_path)
    assert weights_fingerprint(shutil.copytree(tmp_path, tmp_path / "elsewhere")) == fingerprint
    for name in ("params.json", "consolidated.pth"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b" ")
        assert weights_fingerprint(tmp_path) != fingerprint
        (tmp_path / name).write_bytes(content)
    (tmp_path / "consolidated.pth").unlink()
    with pytest.raises(UserError, match=r"there is no .*consolidated.pth: copy it again"):
        weights_fingerprint(tmp_path)
