"""Against a reader of the test's own, which takes the files as vLLM's Medusa does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM
from wmtp_models.formats import medusa

Make = Callable[..., PreTrainedModel]


class Block(nn.Module):
    def __init__(self, size: int, layers: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size, bias=bias) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + y * torch.sigmoid(y)
        return x


class Reader(nn.Module):
    """What the configuration asks for; weights are taken by name, and unknown ones dropped without a word."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        for key in list(config):  # how vLLM reads configurations of several authors
            if "num" in key:
                if "heads" in key:
                    config["num_heads"] = config.pop(key)
                elif "layers" in key:
                    config["num_hidden_layers"] = config.pop(key)
        assert config["model_type"] == "medusa"
        size, vocabulary, count = config["hidden_size"], config["truncated_vocab_size"], config["num_heads"]
        assert vocabulary == config["vocab_size"], "or a token_map would be needed"
        self.blocks = nn.ModuleList(
            Block(size, config["num_hidden_layers"], config.get("medusa_fc_bias", False)) for _ in range(count)
        )
        self.original = config.get("original_lm_head", False)
        if self.original:
            self.lm_head = nn.Linear(size, vocabulary, bias=False)
        else:
            self.lm_heads = nn.ModuleList(nn.Linear(size, vocabulary, bias=False) for _ in range(count))
        self.dropped, self.taken = [], set()
        parameters = dict(self.named_parameters())
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                own = "lm_head.weight" if self.original and name == "lm_heads.0.weight" else name
                if own in parameters:
                    parameters[own].data.copy_(file.get_tensor(name))
                    self.taken.add(own)
                else:
                    self.dropped.append(name)
        self.untouched = parameters.keys() - self.taken

    def forward(self, hidden: Tensor) -> list[Tensor]:
        heads = [self.lm_head] * len(self.blocks) if self.original else self.lm_heads
        return [head(block(hidden)) for block, head in zip(self.blocks, heads, strict=True)]


def trained(causal_lm: PreTrainedModel, kind: str, horizon: int = 4, value_head: bool = False) -> MtpForCausalLM:
    policy = MtpForCausalLM.wrap(causal_lm, horizon, value_head=value_head, head_kind=kind)
    torch.manual_seed(4)
    for parameter in policy.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_reader_like_vllms_computes_our_later_heads(
    kind: str, tied: bool, family: str, make_causal_lm: Make, input_ids: Tensor, tmp_path: Path
) -> None:
    policy = trained(make_causal_lm(family, tie_word_embeddings=tied), kind)
    medusa.save(policy, tmp_path)
    reader = Reader(tmp_path)
    assert reader.dropped == []
    assert reader.untouched == set()
    hidden = policy.causal_lm.base_model(input_ids, use_cache=False).last_hidden_state
    found = torch.stack(reader(hidden), dim=2)
    expected = policy.head_logits(input_ids)
    assert found.shape == (2, 12, 3, 64)
    assert (expected[:, :, 1] - expected[:, :, 2]).abs().max() > 0.5
    torch.testing.assert_close(found, expected[:, :, 1:], rtol=1e-4, atol=1e-4)
    assert "heads 1 to 3" in medusa.check(policy, tmp_path)


def test_mlp_heads_share_one_unembedding_and_linear_ones_have_their_own(make_causal_lm: Make, tmp_path: Path) -> None:
    names = {}
    for kind in ("mlp", "linear"):
        (tmp_path / kind).mkdir()
        medusa.save(trained(make_causal_lm(), kind, horizon=3), tmp_path / kind)
        names[kind] = set(load_file(tmp_path / kind / "model.safetensors"))
    blocks = {f"blocks.{i}.layers.0.weight" for i in range(2)}
    assert names["mlp"] == blocks | {f"blocks.{i}.layers.0.bias" for i in range(2)} | {"lm_heads.0.weight"}
    assert names["linear"] == blocks | {"lm_heads.0.weight", "lm_heads.1.weight"}


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_no_key_can_be_taken_for_another(kind: str, make_causal_lm: Make, tmp_path: Path) -> None:
    medusa.save(trained(make_causal_lm(), kind), tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text()).keys()
    assert [key for key in keys if "num" in key] == ["num_heads", "num_hidden_layers"]


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("name", ["blocks.1.layers.0.weight", "lm_heads.0.weight"])
def test_a_weight_that_changed_is_seen(kind: str, name: str, make_causal_lm: Make, tmp_path: Path) -> None:
    policy = trained(make_causal_lm(), kind)
    medusa.save(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name][0, 0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} in .* differ"):
        medusa.check(policy, tmp_path)


def test_low_precision(make_causal_lm: Make, tmp_path: Path) -> None:
    for kind in ("mlp", "linear"):
        (tmp_path / kind).mkdir()
        policy = trained(make_causal_lm().bfloat16(), kind)
        medusa.save(policy, tmp_path / kind)
        medusa.check(policy, tmp_path / kind)
        assert {w.dtype for w in load_file(tmp_path / kind / "model.safetensors").values()} == {torch.bfloat16}


def test_what_is_left_out_is_named(make_causal_lm: Make) -> None:
    assert medusa.unsupported_parts(trained(make_causal_lm(), "mlp", value_head=True)) == [
        "the trunk and head 0 (--format hf is for these)",
        "the value head",
    ]


def test_heads_that_are_layers_are_refused(make_causal_lm: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its heads are of the kind layer: export to wmtp"):
        medusa.save(MtpForCausalLM.wrap(make_causal_lm()), tmp_path)
    with pytest.raises(UserError, match="there is no head but head 0"):
        medusa.save(MtpForCausalLM.wrap(make_causal_lm(), 1, head_kind="mlp"), tmp_path)
    assert list(tmp_path.iterdir()) == []
