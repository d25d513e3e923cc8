from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_wmtp
from wmtp_models.formats import wmtp

Make = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("kind", ["layer", "mlp", "linear"])
def test_everything_comes_back(kind: str, family: str, make_causal_lm: Make, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(family), 3, value_head=True, head_kind=kind)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    wmtp.save(policy, tmp_path)
    assert "the logits of 3 heads are equal to the bit" in wmtp.check(policy, tmp_path)
    expected, found = policy.state_dict(), load_wmtp(tmp_path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert wmtp.unsupported_parts(policy) == []


def test_other_stop_tokens_are_seen(make_causal_lm: Make, tmp_path: Path) -> None:
    causal_lm = make_causal_lm()
    causal_lm.generation_config.eos_token_id = [2, 7]
    policy = MtpForCausalLM.wrap(causal_lm, 2)
    wmtp.save(policy, tmp_path)
    wmtp.check(policy, tmp_path)
    policy.causal_lm.generation_config.eos_token_id = [2]
    with pytest.raises(UserError, match=r"generation_config.json in .* differs from the model's"):
        wmtp.check(policy, tmp_path)


def test_a_weight_that_changed_is_seen(make_causal_lm: Make, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2, value_head=True)
    wmtp.save(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["value_head.value.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"value_head.value.bias in .* differ"):
        wmtp.check(policy, tmp_path)
