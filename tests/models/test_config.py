import pytest
from transformers import AutoConfig, LlamaConfig

from wmtp_core import UserError
from wmtp_models import MtpConfig


def test_what_is_saved_comes_back(tmp_path) -> None:
    said = {"horizon": 3, "head_kind": "linear", "value_head": True, "value_gradient_to_trunk": True}
    said |= {"generation": {"eos_token_id": [2, 7]}}
    MtpConfig(trunk=LlamaConfig(hidden_size=64), **said).save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, MtpConfig)
    assert {name: getattr(again, name) for name in said} == said
    assert isinstance(again.trunk, LlamaConfig)
    assert again.trunk.hidden_size == 64


def test_there_is_at_least_one_head() -> None:
    with pytest.raises(UserError, match="horizon is 0: it must be at least 1"):
        MtpConfig(trunk=LlamaConfig(), horizon=0)
