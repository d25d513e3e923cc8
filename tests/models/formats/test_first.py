"""Folders that the version before saved, with the heads inside the trunk's last layer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_causal_lm, load_policy, load_wmtp

Make = Callable[..., PreTrainedModel]
LAST = {"llama": "causal_lm.model.layers.2", "gpt2": "causal_lm.transformer.h.2"}


def first_name(name: str, last: str) -> str:
    """The name that the version before gave to a tensor, by its own rule."""
    if name.startswith("heads.blocks."):
        return f"state_heads.{name.removeprefix('heads.blocks.')}"
    if name.startswith("heads.layers."):
        head, _, rest = name.removeprefix("heads.layers.").partition(".")
        return f"{last}.heads.{int(head) + 1}.{rest}"
    return name.replace(f"{last}.", f"{last}.heads.0.")


@pytest.mark.parametrize("kind", ["layer", "mlp"])
@pytest.mark.parametrize("family", LAST)
def test_such_a_folder_loads_as_what_it_was(
    family: str, kind: str, make_causal_lm: Make, input_ids: Tensor, tmp_path: Path
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(family), horizon=3, value_head=True, head_kind=kind)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    old = tmp_path / "old"
    policy.save_pretrained(old)
    config = json.loads((old / "config.json").read_text())
    assert config.pop("format_version") == 2
    (old / "config.json").write_text(json.dumps(config))
    weights = load_file(old / "model.safetensors")
    renamed = {first_name(name, LAST[family]): tensor for name, tensor in weights.items()}
    assert any(".heads.0." in name for name in renamed)
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})

    found = load_wmtp(old)
    assert torch.equal(found.head_logits(input_ids), policy.head_logits(input_ids))
    assert torch.equal(found(input_ids).values, policy(input_ids).values)
    assert load_policy(old, 3, head_kind=kind).value_head is None
    assert torch.equal(load_causal_lm(old)(input_ids).logits, policy.unwrap()(input_ids).logits)
    found.save_pretrained(tmp_path / "new")
    assert torch.equal(
        MtpForCausalLM.from_pretrained(tmp_path / "new").head_logits(input_ids), found.head_logits(input_ids)
    )

    for read in (MtpForCausalLM, AutoModel):  # which would make up what they do not find
        with pytest.raises(UserError, match=r"saved in format 1.*launch/export.py --format wmtp converts its folder"):
            read.from_pretrained(old)
    for weights, described in (("old", "new"), ("new", "old")):
        mixed = shutil.copytree(tmp_path / weights, tmp_path / f"{weights} as {described}")
        shutil.copy(tmp_path / described / "config.json", mixed / "config.json")
        with pytest.raises(
            UserError, match=r"lacks weights that its config.json asks for: causal_lm.*complete"
        ) as error:
            load_wmtp(mixed)
        assert "\n" not in str(error.value)


def test_experts_that_transformers_saved_one_by_one_are_stacked_again(input_ids: Tensor, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 3}
    counts = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", vocab_size=64, initializer_range=0.2, **sizes, **counts)
    policy = MtpForCausalLM.wrap(AutoModelForCausalLM.from_config(config).eval(), horizon=2)
    with torch.no_grad():
        for parameter in policy.heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.startswith("heads.") and ".experts." in name]:
        stacked, experts = weights.pop(name), name.rpartition(".")[0]
        for i, matrix in enumerate(stacked):
            parts = zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True)
            for part, piece in parts if name.endswith("gate_up_proj") else [("down_proj", matrix)]:
                weights[f"{experts}.{i}.{part}.weight"] = piece.clone()
    assert any(name.endswith(".experts.1.up_proj.weight") for name in weights if name.startswith("heads."))
    renamed = {first_name(name, LAST["llama"]): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_wmtp(tmp_path).head_logits(input_ids), policy.head_logits(input_ids))
