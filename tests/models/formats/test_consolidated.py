"""The published format against a small Llama of the test's own, written in the format's terms."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, build_policy, load_causal_lm, load_policy, load_wmtp
from wmtp_models.formats import consolidated

Make = Callable[..., PreTrainedModel]
PARAMS: dict[str, Any] = {
    "dim": 32,
    "n_layers": 5,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 64,
    "multiple_of": 8,
    "norm_eps": 1e-5,
    "n_future_tokens": 3,
}
LAYER = {
    "attention.wq": (32, 32),
    "attention.wk": (16, 32),
    "attention.wv": (16, 32),
    "attention.wo": (32, 32),
    "feed_forward.w1": (88, 32),
    "feed_forward.w2": (32, 88),
    "feed_forward.w3": (88, 32),
    "attention_norm": (32,),
    "ffn_norm": (32,),
}


def published_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (64, 32), "norm": (32,), "output": (64, 32)}
    for layer in ("layers.0", "layers.1", "layers.2", "extra_heads.0", "extra_heads.1"):
        shapes |= {f"{layer}.{name}": shape for name, shape in LAYER.items()}
    return {
        f"{name}.weight": ((len(shape) == 1) + torch.randn(shape, generator=draw) * 0.3).to(dtype)
        for name, shape in shapes.items()
    }


def publish(folder: Path, weights: dict[str, Tensor], **params: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS | params))
    torch.save(weights, folder / "consolidated.pth")
    return folder


def turn(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding of `[B, S, heads, d]`: neighbouring dimensions are a complex number that turns with position."""
    d = x.shape[-1]
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(0, d, 2) / d)
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.view_as_real(z).flatten(-2)


def block(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    h = rms_norm(x, (32,), w[f"{name}.attention_norm.weight"], 1e-5)
    q, k, v = ((h @ w[f"{name}.attention.w{p}.weight"].T).unflatten(-1, (-1, 8)) for p in "qkv")
    k, v = (part.repeat_interleave(2, dim=2) for part in (turn(k), v))
    scores = torch.einsum("bqhd,bkhd->bhqk", turn(q), k) / math.sqrt(8)
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
    x = x + mixed.flatten(2) @ w[f"{name}.attention.wo.weight"].T
    h = rms_norm(x, (32,), w[f"{name}.ffn_norm.weight"], 1e-5)
    gated = silu(h @ w[f"{name}.feed_forward.w1.weight"].T) * (h @ w[f"{name}.feed_forward.w3.weight"].T)
    return x + gated @ w[f"{name}.feed_forward.w2.weight"].T


def oracle(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of all heads, float64 `[B, S, 3, 64]`."""
    w = {name: weight.double() for name, weight in weights.items()}
    x = w["tok_embeddings.weight"][tokens]
    for i in range(2):
        x = block(w, f"layers.{i}", x)
    states = torch.stack([block(w, name, x) for name in ("layers.2", "extra_heads.0", "extra_heads.1")], dim=2)
    return rms_norm(states, (32,), w["norm.weight"], 1e-5) @ w["output.weight"].T


def test_all_heads_compute_what_the_format_means(tmp_path: Path, input_ids: Tensor) -> None:
    weights = published_weights()
    policy = load_policy(publish(tmp_path, weights), horizon=3)
    expected = oracle(weights, input_ids)
    assert (expected[:, :, 0] - expected[:, :, 1]).abs().max() > 1
    torch.testing.assert_close(policy.head_logits(input_ids).double(), expected, rtol=1e-5, atol=1e-5)
    plain = load_causal_lm(tmp_path)
    torch.testing.assert_close(plain(input_ids).logits.double(), expected[:, :, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_from_the_format_and_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = published_weights(dtype)
    policy = load_wmtp(publish(tmp_path / "in", {**weights, "rope.freqs": torch.ones(4)}))
    assert policy.dtype == dtype
    (tmp_path / "out").mkdir()
    consolidated.save(policy, tmp_path / "out")
    again = torch.load(tmp_path / "out" / "consolidated.pth", weights_only=True)
    assert again.keys() == weights.keys()
    assert all(again[name].dtype == dtype and torch.equal(again[name], weights[name]) for name in weights)
    said = json.loads((tmp_path / "out" / "params.json").read_text())
    assert {name: said[name] for name in PARAMS if name != "multiple_of"} == {
        name: value for name, value in PARAMS.items() if name != "multiple_of"
    }


@pytest.mark.parametrize("tied", [False, True])
def test_to_the_format_and_back_bit_for_bit(tied: bool, make_causal_lm: Make, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(tie_word_embeddings=tied), 3, value_head=True)
    for number, parameter in enumerate(policy.parameters()):
        torch.nn.init.normal_(parameter, std=0.1 + number / 100)
    consolidated.save(policy, tmp_path)
    assert "equal to the bit" in consolidated.check(policy, tmp_path)
    again = load_wmtp(tmp_path).state_dict()
    expected = {name: weight for name, weight in policy.state_dict().items() if not name.startswith("value_head")}
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    context = "the context length 64 (readers take 4096)"
    assert consolidated.unsupported_parts(policy) == ["the value head", context]
    policy.remove_value_head()
    assert consolidated.unsupported_parts(policy) == [context]
    policy.causal_lm.generation_config.eos_token_id = [2, 7]
    assert consolidated.unsupported_parts(policy) == [context, "the settings of generation_config.json"]
    assert consolidated.unsupported_parts(load_wmtp(tmp_path)) == []


def test_a_change_of_one_bit_is_seen(make_causal_lm: Make, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2)
    consolidated.save(policy, tmp_path)
    weights = torch.load(tmp_path / "consolidated.pth", weights_only=True)
    weights["extra_heads.0.ffn_norm.weight"][3] = 1.0000001
    torch.save(weights, tmp_path / "consolidated.pth")
    with pytest.raises(UserError, match=r"heads\.layers\.0\.post_attention_layernorm\.weight in .* differ"):
        consolidated.check(policy, tmp_path)


@pytest.mark.parametrize(
    ("changes", "params", "message"),
    [
        ({}, {"n_layers": 6}, r"lacks weights that its params.json asks for: .*layers\.3\."),
        ({}, {"n_future_tokens": 2}, r"(lacks|knows no place for)"),
        ({}, {"dim": 64}, r"other shapes than its params.json says"),
        ({"layers.9.odd": torch.ones(2)}, {}, r"knows no place for: layers\.9\.odd"),
        ({}, {"n_heads": 5}, r"dim 32 does not split into n_heads 5 of even width"),
        ({}, {"n_heads": None}, r"params.json: n_heads is None, not a whole number above 0"),
        ({}, {"n_future_tokens": 6}, r"n_future_tokens is 6 of 5 layers"),
        ({"tok_embeddings.weight": 3}, {}, r"lacks tok_embeddings.weight"),
    ],
)
def test_files_that_do_not_belong_together(
    changes: dict[str, Any], params: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_wmtp(publish(tmp_path, {**published_weights(), **changes}, **params))
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    folder = publish(tmp_path, published_weights())
    weights = folder / "consolidated.pth"
    for content in (weights.read_bytes()[:999], b"", b"not a checkpoint"):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"consolidated.pth cannot be read"):
            load_wmtp(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"consolidated.pth cannot be read"):
        load_wmtp(folder)
    for content, said in (("{", "params.json cannot be read"), ("[]", "params.json is a list, not a dictionary")):
        (folder / "params.json").write_text(content)
        with pytest.raises(UserError, match=said):
            load_wmtp(folder)


def test_a_config_goes_before_params(make_causal_lm: Make, input_ids: Tensor, tmp_path: Path) -> None:
    """Mistral's repositories hold both formats of one model."""
    plain = make_causal_lm("mistral")
    plain.save_pretrained(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}))
    assert torch.equal(load_causal_lm(tmp_path)(input_ids).logits, plain(input_ids).logits)
    assert load_policy(tmp_path, horizon=2).config.trunk.model_type == "mistral"


@pytest.mark.parametrize(
    ("trunk", "head_kind", "message"),
    [
        ({"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2}, "layer", "its trunk is a gpt2"),
        ({"model_type": "llama"}, "mlp", "its heads are of the kind mlp"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "layer", "its activation is gelu"),
        ({"model_type": "llama", "attention_bias": True}, "layer", r"it has causal_lm\..*bias"),
        ({"model_type": "llama", "head_dim": 16}, "layer", "not hidden_size / num_attention_heads wide"),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "layer",
            "its rotary embedding is linear",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_named(
    trunk: dict[str, Any], head_kind: str, message: str, tmp_path: Path
) -> None:
    if trunk["model_type"] == "llama":
        trunk = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, **trunk}
    with pytest.raises(UserError, match=message):
        consolidated.save(build_policy(trunk, 32, 2, head_kind=head_kind), tmp_path)
    assert list(tmp_path.iterdir()) == []
