import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import build_policy, load_causal_lm, load_policy, load_tokenizer, load_wmtp
from wmtp_models.formats import consolidated

Make = Callable[..., PreTrainedModel]
TRUNK = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `plain`, a Hugging Face causal LM, and `wmtp`, the same one with four heads."""
    folder = tmp_path_factory.mktemp("saved")
    policy = build_policy(TRUNK, 64, seed=3)
    policy.save_pretrained(folder / "wmtp")
    policy.unwrap().save_pretrained(folder / "plain")
    return folder


def edited(saved: Path, kind: str, tmp_path: Path, **changes: Any) -> Path:
    """A copy of a saved model whose config.json says something else."""
    copy = tmp_path / kind
    shutil.copytree(saved / kind, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_policy_from_a_plain_model(make_causal_lm: Make, family: str, input_ids: Tensor, tmp_path: Path) -> None:
    plain = make_causal_lm(family)
    plain.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        policy = load_policy(source, horizon=2, value_head=True)
        assert torch.equal(policy.head_logits(input_ids)[:, :, 0], plain(input_ids, use_cache=False).logits)
        assert (policy.config.horizon, policy.config.value_head) == (2, True)


def test_policy_from_a_wmtp_folder(saved: Path, input_ids: Tensor) -> None:
    expected = build_policy(TRUNK, 64, seed=3)(input_ids)
    for value_head in (False, True):
        policy = load_policy(saved / "wmtp", horizon=4, value_head=value_head)
        output = policy(input_ids)
        assert torch.equal(output.ce, expected.ce)
        assert (output.values is not None) == value_head == policy.config.value_head


def test_a_saved_value_head_is_kept_or_dropped_as_asked(tmp_path: Path, input_ids: Tensor) -> None:
    policy = build_policy(TRUNK, 64, value_head=True)
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.value.weight)
    policy.save_pretrained(tmp_path)
    assert torch.equal(load_policy(tmp_path, value_head=True)(input_ids).values, policy(input_ids).values)
    assert load_policy(tmp_path, value_head=False)(input_ids).values is None


def test_float32_by_default_whatever_was_saved(make_causal_lm: Make, tmp_path: Path) -> None:
    make_causal_lm(dtype="bfloat16").save_pretrained(tmp_path)
    assert {p.dtype for p in load_policy(tmp_path, value_head=True).parameters()} == {torch.float32}
    assert load_causal_lm(tmp_path, torch.bfloat16).dtype == torch.bfloat16


def test_plain_model_from_either_kind_of_folder(saved: Path, input_ids: Tensor) -> None:
    plain, head_0 = load_causal_lm(saved / "plain"), load_causal_lm(saved / "wmtp")
    assert type(plain) is type(head_0)
    assert torch.equal(plain(input_ids).logits, head_0(input_ids).logits)


def test_scratch_depends_on_the_seed_alone() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        return dict(build_policy(TRUNK, 64, value_head=True, seed=seed).state_dict())

    torch.manual_seed(11)
    first, state = weights(5), torch.get_rng_state()
    torch.manual_seed(12)
    second, other = weights(5), weights(6)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(11)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left as it was"


def test_scratch_takes_the_vocabulary_and_no_foreign_special_ids() -> None:
    policy = build_policy({**TRUNK, "eos_token_id": 3}, 70, horizon=2)
    assert policy.get_output_embeddings().weight.shape == (70, 32)
    trunk = policy.config.trunk
    assert (trunk.vocab_size, trunk.bos_token_id, trunk.eos_token_id) == (70, None, 3)
    assert policy.dtype == torch.float32


def test_a_key_that_a_family_reads_without_a_default_is_known() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    policy = build_policy({"model_type": "qwen3_moe", **sizes, **heads, "head_dim": 4}, 64, 2)
    assert policy.trunk.last_layer.self_attn.q_proj.weight.shape == (8, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type is None"),
        ({"model_type": "lama"}, "model_type is 'lama'"),
        ({"hidden_sze": 3}, "llama has no hidden_sze"),
        ({"hidden_size": 30}, "no llama can be built so"),
        ({"hidden_act": "swoosh"}, "no llama can be built so .*swoosh"),
        ({"vocab_size": 3}, "vocab_size is 3, the tokenizer's is 64"),
        ({"num_hidden_layers": 0}, "lacks a list of decoder layers"),
    ],
)
def test_scratch_refuses_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_policy({**TRUNK, **changes}, 64)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/nowhere"):
        for load in (load_policy, load_causal_lm, load_tokenizer):
            with pytest.raises(UserError, match=r"there is no folder .*nowhere: check the path"):
                load(source)


def test_folder_without_a_usable_config(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable config.json"):
        load_policy(tmp_path)
    with pytest.raises(UserError, match=r"no usable config.json.*nonsense"):
        load_policy(edited(saved, "plain", tmp_path, model_type="nonsense"))
    with pytest.raises(UserError, match=r"no usable config.json.*lama"):
        load_policy(edited(saved, "wmtp", tmp_path, trunk={**TRUNK, "model_type": "lama"}))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"no usable config.json.*JSON"):
        load_policy(tmp_path)


def test_another_horizon_says_which(saved: Path) -> None:
    with pytest.raises(UserError, match="has 4 heads, but horizon is 2: set horizon to 4"):
        load_policy(saved / "wmtp", horizon=2)


def test_heads_of_another_kind_say_which(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has heads of the kind layer, but head_kind is mlp: set head_kind to layer"):
        load_policy(saved / "wmtp", head_kind="mlp")
    build_policy(TRUNK, 64, 2, head_kind="linear").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has heads of the kind linear, but head_kind is layer"):
        load_policy(tmp_path, 2)
    assert load_policy(tmp_path, 2, head_kind="linear").config.head_kind == "linear"


def test_all_heads_as_they_were_saved(saved: Path, tmp_path: Path) -> None:
    policy = build_policy(TRUNK, 64, 3, value_head=True, head_kind="mlp", seed=3).bfloat16()
    policy.save_pretrained(tmp_path)
    again = load_wmtp(tmp_path)
    assert (again.dtype, again.config.horizon, again.config.head_kind) == (torch.bfloat16, 3, "mlp")
    assert again.state_dict().keys() == policy.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in policy.state_dict().items())
    assert load_wmtp(tmp_path, torch.float32).dtype == torch.float32
    with pytest.raises(UserError, match="plain is a plain llama without heads"):
        load_wmtp(saved / "plain")


def test_the_published_format_is_a_source_like_a_wmtp_folder(saved: Path, input_ids: Tensor, tmp_path: Path) -> None:
    expected = load_policy(saved / "wmtp")
    consolidated.save(expected, tmp_path)
    assert torch.equal(load_policy(tmp_path)(input_ids).ce, expected(input_ids).ce)
    assert load_policy(tmp_path, value_head=True).value_head is not None
    assert torch.equal(load_causal_lm(tmp_path)(input_ids).logits, load_causal_lm(saved / "plain")(input_ids).logits)
    with pytest.raises(UserError, match="has 4 heads, but horizon is 2"):
        load_policy(tmp_path, horizon=2)
    with pytest.raises(UserError, match=r"no tokenizer in .*: put one there"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "horizon", "message"),
    [
        (
            "plain",
            {"intermediate_size": 52},
            4,
            r"other shapes.*down_proj.weight \(\[32, 48\], not \[32, 52\]\) and 5 more",
        ),
        ("plain", {"num_hidden_layers": 3}, 4, r"lacks weights.*layers\.2\."),
        ("plain", {"num_hidden_layers": 1}, 4, r"knows no place for.*layers\.1\."),
        ("wmtp", {"horizon": 6}, 6, r"lacks weights.*heads\.layers\.3\."),
        ("wmtp", {"horizon": 2}, 2, r"knows no place for.*heads\.layers\.1\."),
    ],
)
def test_weights_must_be_the_ones_that_the_config_describes(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    kind: str, changes: dict[str, Any], horizon: int, message: str,
) -> None:  # fmt: skip
    with pytest.raises(UserError, match=message) as caught:
        load_policy(edited(saved, kind, tmp_path, **changes), horizon)
    assert "\n" not in str(caught.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_damaged_weights(saved: Path, tmp_path: Path) -> None:
    folder = edited(saved, "plain", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"cannot be read.*no file named model.safetensors"):
        load_policy(folder)


def test_tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast], saved: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    encoded = loaded("a tiny test", return_offsets_mapping=True)
    assert encoded["offset_mapping"][0][0] == 0
    with pytest.raises(UserError, match=r"no tokenizer in .*plain.*save_pretrained"):
        load_tokenizer(saved / "plain")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer in"):
        load_tokenizer(tmp_path)
