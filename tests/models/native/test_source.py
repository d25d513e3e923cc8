import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shipping_sources import FULL, SLIDING
from torch import Tensor

from wmtp_core import UserError
from wmtp_models import load_policy
from wmtp_models.native.blocks import NativeModules
from wmtp_models.native.source import ShippedModules, find_shipped

Ship = Callable[..., tuple[Path, dict[str, Tensor]]]


def found(folder: Path, **said: Any) -> ShippedModules:
    """What a source ships, after its config.json has been changed."""
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != ""}))
    shipped = find_shipped(folder)
    assert shipped is not None
    return shipped


def test_what_a_source_ships_is_told_from_its_names(ship: Ship) -> None:
    folder, tensors = ship("glm4_moe")
    shipped = found(folder)
    assert shipped.describe() == (NativeModules("deepseek", sparse=True, copies=["embedding", "unembedding"]), 2)
    theirs = {name for name in tensors if name.startswith(("model.layers.3.", "model.layers.4."))}
    assert shipped.files.keys() == theirs
    assert {name for name in tensors if shipped.pattern.search(name)} == theirs
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in shipped.read().items())


@pytest.mark.parametrize("kinds", [[SLIDING, FULL, SLIDING], [FULL] * 3])
def test_their_attention_is_what_the_configuration_says(kinds: list[str], ship: Ship) -> None:
    shipped = found(ship("mellum")[0], layer_types=kinds, mtp_layer_types=[FULL])
    assert shipped.describe()[0].attention == FULL


def test_their_attention_is_the_familys_or_the_only_one(ship: Ship) -> None:
    folder, _ = ship("exaone_moe")
    assert found(folder).describe()[0].attention == SLIDING
    assert found(folder, layer_types=[FULL] * 3).describe()[0].attention == FULL


def test_an_attention_that_cannot_be_told_is_refused(ship: Ship) -> None:
    folder, _ = ship("qwen3")
    shipped = found(folder, layer_types=[SLIDING, FULL, FULL], sliding_window=6, use_sliding_window=True)
    with pytest.raises(UserError, match=r"does not say which attention they have \(add mtp_layer_types to it"):
        shipped.describe()


def test_modules_of_several_kinds_are_refused(ship: Ship) -> None:
    folder, tensors = ship("llama")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "mtp.layers.1.mlp.up_proj.weight"}
        | {"mtp.layers.1.mlp.experts.0.up_proj.weight": torch.zeros(48, 32)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match="they are not alike"):
        found(folder).describe()


def test_damaged_files_are_one_line(ship: Ship) -> None:
    folder, _ = ship()
    shipped = found(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    for read in (shipped.read, lambda: find_shipped(folder)):
        with pytest.raises(UserError, match="cannot be read") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_quantized_modules_are_refused(ship: Ship) -> None:
    """As DeepSeek publishes them."""
    shipped = found(ship("deepseek_v3")[0], quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match="they are quantized"):
        shipped.describe()


def test_modules_that_lie_in_no_safetensors_are_not_left_without_a_word(ship: Ship, capsys: Any) -> None:
    folder, tensors = ship("exaone_moe")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert find_shipped(folder) is None
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 1
    assert said[0].startswith(f"warning: {folder} may ship sequential modules (its num_nextn_predict_layers is 1)")


def test_a_layer_too_many_is_no_module(ship: Ship) -> None:
    folder, tensors = ship("glm4_moe")
    marks = ("eh_proj", "enorm", "hnorm", "shared_head")
    plain = {name: tensor for name, tensor in tensors.items() if not any(mark in name for mark in marks)}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    assert find_shipped(folder) is None
    with pytest.raises(UserError, match=r"has weights that its config.json knows no place for: model.layers.3"):
        load_policy(folder, 2)
