"""Folders that the version before saved, with the heads inside the trunk's last layer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_causal_lm, load_policy, load_wmtp
from wmtp_models.formats.first import current_name

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
    shutil.copy(tmp_path / "new/model.safetensors", old / "model.safetensors")  # a mix of both
    assert torch.equal(load_wmtp(old).head_logits(input_ids), policy.head_logits(input_ids))


def test_names_of_no_head_stay() -> None:
    for name in ("causal_lm.model.layers.0.mlp.up_proj.weight", "value_head.norm.bias", "heads.layers.0.x"):
        assert current_name(name) == name
