import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_policy, load_wmtp
from wmtp_models.formats import hf

Make = Callable[..., PreTrainedModel]

ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("wmtp")]
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["layer", "mlp", "linear"])
def test_the_plain_model_comes_out_as_it_went_in(
    kind: str, family: str, make_causal_lm: Make, input_ids: Tensor, tmp_path: Path
) -> None:
    make_causal_lm(family).save_pretrained(tmp_path / "before")
    policy = MtpForCausalLM.wrap(make_causal_lm(family), 3, value_head=True, head_kind=kind)
    hf.save(policy, tmp_path / "after")
    assert "the logits of head 0 are equal to the bit" in hf.check(policy, tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "before" / name).read_text() == (tmp_path / "after" / name).read_text()
    assert hf.unsupported_parts(policy) == ["heads 1 to 2", "the value head"]


@pytest.mark.slow
def test_transformers_loads_it_without_us(make_causal_lm: Make, input_ids: Tensor, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3)
    hf.save(policy, tmp_path / "plain")
    torch.save(input_ids, tmp_path / "tokens.pt")
    command = [sys.executable, "-c", ALONE, tmp_path / "plain", tmp_path / "tokens.pt", tmp_path / "logits.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), make_causal_lm()(input_ids).logits)


def test_stop_tokens_and_sampling_come_out_as_they_went_in(make_causal_lm: Make, tmp_path: Path) -> None:
    """Through training's own folder; with sampling's settings and no sampling, as some published models have it."""
    said = {"bos_token_id": 1, "eos_token_id": [2, 7, 9], "temperature": 0.6}
    make_causal_lm().save_pretrained(tmp_path / "before")
    (tmp_path / "before" / "generation_config.json").write_text(json.dumps(said))
    load_policy(tmp_path / "before", 2).save_pretrained(tmp_path / "wmtp")
    policy = load_wmtp(tmp_path / "wmtp")
    hf.save(policy, tmp_path / "after")
    hf.check(policy, tmp_path / "after")
    found = json.loads((tmp_path / "after" / "generation_config.json").read_text())
    assert {name: value for name, value in found.items() if name != "transformers_version"} == said
    (tmp_path / "after" / "generation_config.json").write_text(json.dumps(said | {"eos_token_id": 2}))
    with pytest.raises(UserError, match=r"generation_config.json in .*after differs from the model's"):
        hf.check(policy, tmp_path / "after")


def test_a_weight_that_changed_is_seen(make_causal_lm: Make, tmp_path: Path) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2)
    hf.save(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-6
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj.weight in .* differ"):
        hf.check(policy, tmp_path)
