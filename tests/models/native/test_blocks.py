from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shipping_sources import FULL, SLIDING
from torch import Tensor
from transformers import AutoConfig

from wmtp_core import UserError
from wmtp_models import load_policy
from wmtp_models.native.blocks import NativeModules

MELLUM = {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING], "mlp_layer_types": ["sparse"] * 3}


def test_a_blocks_configuration_is_the_trunks_but_for_its_kind() -> None:
    trunk = AutoConfig.for_model("mellum", **MELLUM)
    config = NativeModules("qwen", FULL).block_config(trunk, 2)
    differing = {name for name, value in trunk.to_dict().items() if config.to_dict()[name] != value}
    assert differing == {"num_hidden_layers", "layer_types", "mlp_layer_types"}
    assert (config.layer_types, config.mlp_layer_types) == ([FULL, FULL], ["dense", "dense"])
    assert NativeModules("qwen", FULL, sparse=True).block_config(trunk, 1).mlp_layer_types == ["sparse"]


def test_blocks_are_called_as_the_last_layer_of_their_kind() -> None:
    trunk = AutoConfig.for_model("mellum", **MELLUM)
    assert NativeModules("qwen", FULL).called_as(trunk) == 1
    assert NativeModules("qwen", SLIDING).called_as(trunk) == 2
    assert NativeModules("deepseek").called_as(AutoConfig.for_model("deepseek_v3")) == -1


def test_a_kind_that_no_layer_has_is_refused() -> None:
    trunk = AutoConfig.for_model("mellum", **(MELLUM | {"layer_types": [FULL] * 3}))
    with pytest.raises(UserError, match="mellum ships have sliding_attention, which none of its layers has"):
        NativeModules("qwen", SLIDING).called_as(trunk)


def test_blocks_have_the_trunks_dtype(ship: Callable[..., tuple[Path, dict[str, Tensor]]]) -> None:
    policy = load_policy(ship()[0], 2, head_kind="sequential", dtype=torch.bfloat16)
    (block,) = NativeModules(**policy.config.native).build_blocks(policy.trunk, 1)
    assert {weight.dtype for weight in block.state_dict().values()} == {torch.bfloat16}
    assert block.state_dict().keys() == policy.heads.layers[0].block.state_dict().keys()
