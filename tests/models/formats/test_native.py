import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shipping_sources import COMMON, LAYERS, SHIPPING
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_policy, load_wmtp
from wmtp_models.formats import hf, native

Ship = Callable[..., tuple[Path, dict[str, Tensor]]]

DRAFTED = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.arange(9).unsqueeze(0)
plain = model.generate(ids, max_new_tokens=12, do_sample=False, use_mtp=False)
drafted = model.generate(ids, max_new_tokens=12, do_sample=False, use_mtp=True)
assert torch.equal(plain, drafted), (plain, drafted)
assert not [name for name in sys.modules if name.startswith("wmtp")]
"""


def load(folder: Path, name: str, **options: Any) -> MtpForCausalLM:
    count = SHIPPING[name].modules
    options = {"head_kind": "sequential", "packing": SHIPPING[name].packing, **options}
    return load_policy(folder, count + 1, shared_module=count == 1, **options).eval()


def require_same_files(source: Path, tensors: dict[str, Tensor], folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert json.loads((folder / "config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_a_plain_export_announces_no_modules(ship: Ship, tmp_path: Path) -> None:
    source, _ = ship("glm4_moe")
    policy = load_policy(source, 2)
    hf.save(policy, tmp_path / "plain")
    assert json.loads((source / "config.json").read_text())["num_nextn_predict_layers"] == 2
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert "equal to the bit" in hf.check(policy, tmp_path / "plain")


@pytest.mark.parametrize("name", SHIPPING)
def test_a_source_comes_out_as_it_went_in(name: str, ship: Ship, tmp_path: Path) -> None:
    """Straight from the source, and by way of the folder that training writes."""
    source, tensors = ship(name)
    policy = load(source, name, value_head=True)
    native.save(policy, tmp_path / "straight")
    require_same_files(source, tensors, tmp_path / "straight")
    assert native.unsupported_parts(policy) == ["the value head"]
    policy.save_pretrained(tmp_path / "trained")
    again = load_wmtp(tmp_path / "trained").eval()
    native.save(again, tmp_path / "after")
    require_same_files(source, tensors, tmp_path / "after")
    assert "logits of" in native.check(again, tmp_path / "after")


@pytest.mark.parametrize("name", ["mellum", "glm4_moe", "exaone_moe"])
def test_mixed_dtypes_come_out_as_they_went_in(name: str, ship: Ship, tmp_path: Path) -> None:
    """As published: bfloat16, but for the routers' bias."""
    source, tensors = ship(name)
    tensors = {
        part: tensor if part.endswith("e_score_correction_bias") else tensor.bfloat16()
        for part, tensor in tensors.items()
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps(config))
    policy = load(source, name, dtype=torch.bfloat16)
    native.save(policy, tmp_path / "straight")
    require_same_files(source, tensors, tmp_path / "straight")
    native.check(policy, tmp_path / "straight")


def test_stacked_experts_stay_stacked(ship: Ship, tmp_path: Path) -> None:
    """As Qwen3.5 publishes them."""
    source, tensors = ship("qwen3_5_moe_text")
    for layer in (*(f"model.layers.{index}" for index in range(LAYERS)), "mtp.layers.0"):
        experts = [
            [tensors.pop(f"{layer}.mlp.experts.{index}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for index in range(4)
        ]
        tensors[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        tensors[f"{layer}.mlp.experts.down_proj"] = torch.stack([down for *_, down in experts])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    load(source, "qwen3_5_moe_text").save_pretrained(tmp_path / "trained")
    policy = load_wmtp(tmp_path / "trained").eval()
    native.save(policy, tmp_path / "after")
    require_same_files(source, tensors, tmp_path / "after")
    native.check(policy, tmp_path / "after")


def test_a_model_of_more_than_text_gives_its_text_part(tmp_path: Path) -> None:
    family = SHIPPING["qwen3_5_text"]
    text = {**COMMON, **family.config, "num_hidden_layers": LAYERS, **family.layer_kinds(LAYERS)}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 32}
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision, image_token_id=1, video_token_id=2)
    )
    whole.save_pretrained(tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    last = f"model.language_model.layers.{LAYERS - 1}."
    block = {name.replace(last, "mtp.layers.0."): tensor.clone() for name, tensor in tensors.items() if last in name}
    norms = {f"mtp.{name}.weight": torch.zeros(32) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    tensors |= block | norms | {"mtp.fc.weight": torch.randn(32, 64)}
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    policy = load_policy(tmp_path / "source", 2, head_kind="sequential").eval()
    native.save(policy, tmp_path / "after")
    native.check(policy, tmp_path / "after")
    assert native.unsupported_parts(policy) == ["the parts of its source that are not for text"]


def test_what_was_learned_comes_out(ship: Ship, tmp_path: Path) -> None:
    source, tensors = ship("glm4_moe")
    policy = load(source, "glm4_moe")
    with torch.no_grad():
        policy.heads.layers[1].block.mlp.experts.down_proj[2].mul_(2)
        policy.get_input_embeddings().weight.mul_(2)
    native.save(policy, tmp_path / "after")
    found = load_file(tmp_path / "after" / "model.safetensors")
    changed = {name for name, tensor in tensors.items() if not torch.equal(found[name], tensor)}
    embeddings = {f"model.{place}embed_tokens.weight" for place in ("", "layers.3.", "layers.4.")}
    assert changed == {"model.layers.4.mlp.experts.2.down_proj.weight", *embeddings}
    assert all(torch.equal(found[name], 2 * tensors[name]) for name in changed)
    native.check(policy, tmp_path / "after")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mellum", "mellum dense"])
def test_transformers_drafts_with_it_without_us(name: str, ship: Ship, tmp_path: Path) -> None:
    native.save(load(ship(name)[0], name), tmp_path / "after")
    command = [sys.executable, "-c", DRAFTED, tmp_path / "after"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tensor_that_changed_is_seen(ship: Ship, tmp_path: Path) -> None:
    policy = load(ship()[0], "mellum dense")
    native.save(policy, tmp_path / "after")
    found = load_file(tmp_path / "after" / "model.safetensors")
    found["mtp.fc.weight"][0, 0] += 1e-3
    save_file(found, tmp_path / "after" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"heads.layers.0.eh_proj.weight in .* differ"):
        native.check(policy, tmp_path / "after")


def test_new_modules_are_not_native(make_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2, head_kind="sequential")
    with pytest.raises(UserError, match="this model's are new"):
        native.save(policy, tmp_path)


def test_a_plain_export_says_that_modules_are_dropped(ship: Ship, tmp_path: Path) -> None:
    policy = load(ship()[0], "mellum dense")
    assert hf.unsupported_parts(policy) == [
        "heads 1 to 1",
        "the modules that its source shipped, which the format native keeps",
    ]
    hf.save(policy, tmp_path / "plain")
    hf.check(policy, tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
