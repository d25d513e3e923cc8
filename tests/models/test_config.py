import json

import pytest
from transformers import AutoConfig, LlamaConfig

from wmtp_core import UserError
from wmtp_models import MtpConfig
from wmtp_models.hf_loading import read_config


def test_what_is_saved_comes_back(tmp_path) -> None:
    said = {"horizon": 3, "head_kind": "linear", "value_head": True, "value_gradient_to_trunk": True}
    said |= {"generation": {"eos_token_id": [2, 7]}}
    MtpConfig(trunk=LlamaConfig(hidden_size=64), **said).save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, MtpConfig)
    assert {name: getattr(again, name) for name in said} == said
    assert isinstance(again.trunk, LlamaConfig)
    assert again.trunk.hidden_size == 64


@pytest.mark.parametrize("horizon", [0, -1])
def test_there_is_at_least_one_head(horizon: int) -> None:
    with pytest.raises(UserError, match=f"horizon is {horizon}: it must be at least 1"):
        MtpConfig(trunk=LlamaConfig(), horizon=horizon)


def test_a_folder_of_a_version_to_come_is_refused(tmp_path) -> None:
    MtpConfig(trunk=LlamaConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    with pytest.raises(UserError, match=r"format_version is 3, and formats up to 2 are known: update wmtp-models"):
        read_config(tmp_path)
