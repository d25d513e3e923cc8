import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import load_causal_lm, load_policy, load_tokenizer, weights_fingerprint
from wmtp_models.hf_loading import read_config, resolve_source

Make = Callable[..., PreTrainedModel]
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_tensors(causal_lm: PreTrainedModel) -> dict[str, Tensor]:
    """A Llama's weights under the names and in the order of llama.cpp."""
    state = causal_lm.state_dict()
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(causal_lm.config.num_hidden_layers):
        for ours, theirs in GGUF_NAMES.items():
            weight = state[f"model.layers.{i}.{ours}.weight"]
            if heads := {"attn_q": 4, "attn_k": 2}.get(theirs):
                weight = weight.view(heads, 2, 4, 32).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{i}.{theirs}.weight"] = weight
    return tensors


def write_gguf(path: Path, causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    config, vocabulary = causal_lm.config, tokenizer.get_vocab()
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3 if token == "<eos>" else 1 for token in sorted(vocabulary, key=vocabulary.get)])
    writer.add_token_merges([" ".join(merge) for merge in merges(tokenizer)])
    writer.add_eos_token_id(vocabulary["<eos>"])
    for name, tensor in gguf_tensors(causal_lm).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merges(tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.fixture
def gguf(make_causal_lm: Make, make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path) -> Path:
    """A GGUF file of a tiny Llama and its tokenizer, alone in its folder."""
    tokenizer = make_tokenizer("a tiny tokenizer for tiny tests, tiny tokens and tests of tokens")
    folder = tmp_path / "gguf"
    folder.mkdir()
    return write_gguf(folder / "tiny.gguf", make_causal_lm(vocab_size=len(tokenizer)), tokenizer)


def test_a_gguf_file_or_its_folder_is_the_model_in_it(gguf: Path, make_causal_lm: Make, input_ids: Tensor) -> None:
    plain = make_causal_lm(vocab_size=read_config(gguf).vocab_size)
    tokens = input_ids % plain.config.vocab_size
    expected = plain(tokens, use_cache=False).logits
    for source in (gguf, str(gguf), gguf.parent):
        torch.testing.assert_close(load_causal_lm(source)(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    policy = load_policy(gguf, horizon=2)
    ours, theirs = policy.unwrap().state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_read_from_gguf_is_saved_like_any_other(gguf: Path, tmp_path: Path) -> None:
    policy = load_policy(gguf, horizon=2)
    policy.save_pretrained(tmp_path / "wmtp")
    again = load_policy(tmp_path / "wmtp", horizon=2).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in policy.state_dict().items())
    policy.unwrap().save_pretrained(tmp_path / "plain")
    assert load_causal_lm(tmp_path / "plain").dtype == torch.float32


def test_the_tokenizer_is_in_the_same_file(gguf: Path) -> None:
    tokenizer = load_tokenizer(gguf)
    encoded = tokenizer("tiny tests", return_offsets_mapping=True, add_special_tokens=False)
    assert encoded["offset_mapping"][0][0] == 0
    assert tokenizer.decode(encoded["input_ids"]) == "tiny tests"
    assert len(encoded["input_ids"]) < len("tiny tests")
    assert tokenizer.eos_token == "<eos>"


def test_the_fingerprint_is_of_the_whole_file(gguf: Path, tmp_path: Path) -> None:
    fingerprint = weights_fingerprint(gguf)
    assert weights_fingerprint(str(gguf.parent)) == fingerprint
    elsewhere = shutil.copytree(gguf.parent, tmp_path / "elsewhere") / gguf.name
    (elsewhere.parent / "notes.txt").write_text("of no weight")
    assert weights_fingerprint(elsewhere) == fingerprint
    content = bytearray(gguf.read_bytes())
    content[-1] ^= 1
    elsewhere.write_bytes(content)
    assert weights_fingerprint(elsewhere) != fingerprint


def test_several_gguf_files_in_a_folder(gguf: Path) -> None:
    (gguf.parent / "other.gguf").touch()
    with pytest.raises(UserError, match=r"holds 2 GGUF files: name one of them, such as .*other\.gguf"):
        resolve_source(gguf.parent)
    assert resolve_source(gguf) == (str(gguf.parent), {"gguf_file": "tiny.gguf"})


def test_a_config_goes_before_a_gguf_file(gguf: Path) -> None:
    (gguf.parent / "config.json").write_text("{}")
    assert resolve_source(gguf.parent) == (str(gguf.parent), {})


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(package: str, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"tiny\.gguf is a GGUF file, which needs the package {package}: pip install"):
        load_policy(gguf)


def test_a_damaged_gguf_file(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"tiny\.gguf") as caught:
        load_policy(gguf)
    assert "\n" not in str(caught.value)


def test_a_name_is_left_to_transformers() -> None:
    assert resolve_source("owner/model") == ("owner/model", {})
