from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpConfig, MtpForCausalLM, build_policy, load_policy
from wmtp_models.heads.medusa import LinearHeads, ResidualHeads
from wmtp_models.heads.sparse_grad_linear import RowSparseLinear

Make = Callable[..., PreTrainedModel]
KINDS = ("mlp", "linear")


def diverge(policy: MtpForCausalLM) -> MtpForCausalLM:
    torch.manual_seed(1)
    for parameter in policy.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_all_heads_start_as_the_plain_model(kind: str, family: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    causal_lm = make_causal_lm(family)
    plain = causal_lm(input_ids, use_cache=False).logits
    logits = MtpForCausalLM.wrap(causal_lm, 3, head_kind=kind).head_logits(input_ids)
    assert all(torch.equal(logits[:, :, h], plain) for h in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_each_head_predicts_from_the_final_hidden_state(
    kind: str, family: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(family), 3, head_kind=kind))
    final = policy.causal_lm.base_model(input_ids, use_cache=False).last_hidden_state.double()
    unembedding = policy.get_output_embeddings().weight.double()
    ce = policy(input_ids).ce
    for h in range(3):
        state = final
        if h:
            layer = policy.heads.blocks[h - 1].layer
            product = final @ layer.weight.double().T
            if kind == "mlp":
                product = product + layer.bias.double()
                state = final + product / (1 + (-product).exp())
            else:
                state = product
        expected = cross_entropy((state @ unembedding.T)[:, : -h - 1].flatten(0, 1), input_ids[:, h + 1 :].flatten(),
                                 reduction="none")  # fmt: skip
        torch.testing.assert_close(ce[:, : -h - 1, h].flatten().double(), expected, rtol=1e-4, atol=1e-4)
    assert (ce[:, :5, 1] - ce[:, :5, 2]).abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_head_0_and_what_unwrap_gives_are_the_plain_model(kind: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    plain = make_causal_lm()
    expected = {name: weight.clone() for name, weight in plain.state_dict().items()}
    policy = diverge(MtpForCausalLM.wrap(plain, 3, head_kind=kind))
    found = policy.unwrap().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_are_skipped(kind: str) -> None:
    heads = {"mlp": ResidualHeads, "linear": LinearHeads}[kind](8, 2)
    assert [type(block.layer) for block in heads.blocks] == [RowSparseLinear] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back(kind: str, make_causal_lm: Make, input_ids: Tensor, tmp_path) -> None:
    policy = diverge(MtpForCausalLM.wrap(make_causal_lm(), 3, value_head=True, head_kind=kind))
    policy.save_pretrained(tmp_path)
    for again in (
        MtpForCausalLM.from_pretrained(tmp_path),
        load_policy(tmp_path, 3, value_head=True, head_kind=kind),
    ):
        assert again.config.head_kind == kind
        assert torch.equal(again.head_logits(input_ids), policy.head_logits(input_ids))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_a_low_precision_model_are_of_its_dtype(kind: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm().bfloat16(), 3, head_kind=kind)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    assert policy.head_logits(input_ids).isfinite().all()


def test_from_scratch_too() -> None:
    trunk = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = build_policy(trunk, 32, horizon=4, head_kind="mlp")
    assert len(policy.heads) == 3
    assert [kind.__name__ for kind in {type(block) for block in policy.heads.blocks}] == ["ResidualHead"]


def test_a_folder_of_before_there_were_kinds_has_layers() -> None:
    config = MtpConfig(trunk={"model_type": "llama"}).to_dict()
    del config["head_kind"]
    assert MtpConfig.from_dict(config).head_kind == "layer"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="head_kind is 'mpl': choose one of layer, sequential, mlp, linear"):
        MtpConfig(trunk={"model_type": "llama"}, head_kind="mpl")
