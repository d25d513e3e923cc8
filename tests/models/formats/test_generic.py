import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM
from wmtp_models.formats import exaone, generic, glm, mimo_drafter, native

Make = Callable[..., PreTrainedModel]
PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def make_policy(make_causal_lm: Make) -> Callable[..., MtpForCausalLM]:
    """Two depths beside three layers; the modules have moved, a little, so that some drafts are right."""

    def make(
        family: str = "llama", shared: bool = True, kind: str = "sequential", block: str = "trunk", **overrides: Any
    ) -> MtpForCausalLM:
        causal_lm = make_causal_lm(family, **overrides)
        policy = MtpForCausalLM.wrap(causal_lm, 3, head_kind=kind, shared_module=shared, head_block=block).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in policy.heads.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return policy

    return make


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_drafts_with_the_modules_and_tells_the_trunks_text(
    family: str, shared: bool, make_policy: Callable[..., MtpForCausalLM], tmp_path: Path, monkeypatch: Any
) -> None:
    """With the folder's own code, as a user loads it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    policy = make_policy(family, shared)
    generic.save(policy, tmp_path / "out")
    assert "gives the text that it gives without" in generic.check(policy, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0}
    how["attention_mask"] = torch.ones_like(PROMPT)
    calls: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    plain = policy.unwrap().generate(PROMPT, **how)
    assert torch.equal(model.generate(PROMPT, use_mtp=True, **how), plain)
    assert plain.shape[1] == 28
    assert len(calls) <= 24
    assert len(calls) < 24 or family == "qwen3", "some drafts were accepted"
    assert model.config.num_mtp_layers == 2


def test_a_module_that_was_damaged_is_noticed(make_policy: Callable[..., MtpForCausalLM], tmp_path: Path) -> None:
    policy = make_policy()
    generic.save(policy, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    weights["mtp.layers.1.eh_proj.weight"][3, 4] += 1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the logits of .* differ"):
        generic.check(policy, tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "name"), [(generic, "mtp.layers.0.eh_proj.weight"), (exaone, "mtp.fc.weight"), (glm, "eh_proj.weight")]
)
def test_inputs_in_the_other_order_are_noticed(
    form: Any, name: str, make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    """Texts would not tell: they are the trunk's own, whatever is drafted."""
    policy = make_policy("qwen3")
    form.save(policy, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    (full,) = [found for found in weights if found.endswith(name)]
    weights[full] = weights[full].roll(weights[full].shape[0], dims=1).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the logits of .* differ"):
        form.check(policy, tmp_path / "out")


def test_a_mixture_of_experts_has_its_modules_in_transformers(
    make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    policy = make_policy("qwen3_moe", **experts)
    generic.save(policy, tmp_path / "out")
    assert "the logits of 3 heads" in generic.check(policy, tmp_path / "out")


def test_modules_that_transformers_would_build_otherwise_are_refused(
    make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    policy = make_policy("smollm3", no_rope_layers=[1, 1, 0], pad_token_id=None)
    generic.save(policy, tmp_path / "out")
    with pytest.raises(UserError, match=r"the logits of .* differ"):
        generic.check(policy, tmp_path / "out")


def test_the_commands_draft_as_many_as_there_are_heads(make_policy: Callable[..., MtpForCausalLM]) -> None:
    policy = make_policy("qwen3")
    for form in (generic, exaone, mimo_drafter, glm, native):
        commands = form.commands(policy)
        assert all('"num_speculative_tokens": 2}' in commands[name] for name in commands if name.startswith("vLLM"))
        assert all("--speculative-num-steps 2 " in commands[name] for name in commands if name.startswith("SGLang"))


def test_a_dense_qwen3_is_an_exaone(make_policy: Callable[..., MtpForCausalLM], tmp_path: Path) -> None:
    policy = make_policy("qwen3")
    exaone.save(policy, tmp_path / "out")
    said = exaone.check(policy, tmp_path / "out")
    assert "ExaoneMoeForCausalLM" in said
    written = load_file(tmp_path / "out" / "model.safetensors")
    trunk = policy.unwrap().state_dict()
    assert all(torch.equal(written[name], trunk[name]) for name in trunk)
    modules = {name for name in written if name.startswith("mtp.")}
    assert written.keys() == trunk.keys() | modules
    assert torch.equal(written["mtp.fc.weight"], policy.heads.layers[0].eh_proj.weight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "block"), [("llama", "trunk"), ("qwen2", "trunk"), ("qwen3", "qwen2")])
def test_a_mimo_drafter_stands_beside_its_trunk(
    family: str, block: str, tied: bool, make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    policy = make_policy(family, block=block, tie_word_embeddings=tied)
    (tmp_path / "out").mkdir()
    mimo_drafter.save(policy, tmp_path / "out")
    assert "head 1's logits by a Qwen2 layer" in mimo_drafter.check(policy, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(name.startswith("model.mtp_layers.0.") for name in written)
    bias = written["model.mtp_layers.0.self_attn.q_proj.bias"]
    assert bool(bias.any()) == (family == "qwen2" or block == "qwen2")
    ours = policy.heads.layers[0].eh_proj.weight
    x, y = torch.randn(2, 32)
    projection: Tensor = written["model.mtp_layers.0.input_proj.weight"]
    torch.testing.assert_close(projection @ torch.cat([y, x]), ours @ torch.cat([x, y]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_trunk_with_modules_is_a_glm(
    family: str, shared: bool, tied: bool, make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    policy = make_policy(family, shared, tie_word_embeddings=tied)
    glm.save(policy, tmp_path / "out")
    assert "the logits of 3 heads in Glm4MoeForCausalLM" in glm.check(policy, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_nextn_predict_layers"]) == ("glm4_moe", 1 if shared else 2)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.layers.3.eh_proj.weight"], policy.heads.layers[0].eh_proj.weight)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.layers.3.mlp.experts.1.down_proj.weight"][0] += 1
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    glm.check(policy, tmp_path / "out"), "the second expert is never chosen"
    weights["model.layers.3.mlp.experts.0.down_proj.weight"][0] += 1
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the logits of .* differ"):
        glm.check(policy, tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "family", "how", "said"),
    [
        (generic, "llama", {"kind": "layer"}, "its heads are of the kind layer: export to wmtp"),
        (generic, "gpt2", {}, "norms are RMSNorm"),
        (generic, "llama", {"block": "qwen2"}, "these are Qwen2's: export to mimo-drafter"),
        (glm, "qwen3", {"block": "qwen2"}, "its layers have other weights: export to generic"),
        (glm, "mistral", {}, "this is mistral: export to generic"),
        (glm, "llama", {"intermediate_size": 47}, "an odd number of units"),
        (glm, "llama", {"kind": "layer"}, "its heads are of the kind layer: export to wmtp"),
        (generic, "llama", {"num_hidden_layers": 1}, "at least as many layers .* it has 1 for 2"),
        (exaone, "llama", {}, "this is llama: export to mimo-drafter or generic"),
        (exaone, "qwen3", {"shared": False}, "here each has its own: export to generic"),
        (mimo_drafter, "qwen3", {"head_dim": 8}, r"no place for the layer of qwen3 \(self_attn.k_norm.weight\)"),
        (mimo_drafter, "llama", {"head_dim": 16}, "hidden_size / num_attention_heads"),
        (
            mimo_drafter,
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0},
            "is sliding",
        ),
        (generic, "mistral", {}, "full attention, and the trunk's is sliding"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    form: Any, family: str, how: dict[str, Any], said: str, make_policy: Callable[..., MtpForCausalLM], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        form.save(make_policy(family, **how), tmp_path)
    assert not list(tmp_path.iterdir())
