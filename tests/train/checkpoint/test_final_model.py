import json

import pytest
import torch
from transformers import AutoTokenizer

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, load_tokenizer
from wmtp_train.build_models import build_policy_from_settings
from wmtp_train.checkpoint.final_model import save_model, save_results
from wmtp_train.engines.deepspeed.engine import ZeroEngine


@pytest.fixture
def make_engine(processes, make_settings, tiny_home):
    def make(stage=1):
        settings = make_settings()
        policy = build_policy_from_settings(settings, load_tokenizer(tiny_home / "tokenizer"), value_head=False)
        config = {"train_batch_size": 2, "zero_optimization": {"stage": stage}}
        return ZeroEngine(policy, config, settings.optimizer, 10, processes)

    return make


@pytest.mark.parametrize("stage", [1, 3])
def test_the_final_model_loads_with_its_tokenizer(processes, make_engine, tiny_home, tmp_path, stage):
    engine = make_engine(stage)
    engine.backward_and_step(engine(torch.randint(50, (2, 16))).ce.mean())
    tokenizer = load_tokenizer(tiny_home / "tokenizer")
    engine.policy.eval()
    rows = torch.arange(16)[None]
    with torch.no_grad():
        expected = engine(rows).ce
    for _ in range(2):  # a second time over the first
        save_model(engine, processes, tokenizer, tmp_path / "model")
    model = MtpForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(model(rows).ce, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == ["model"]


def test_results_stand_beside_the_model(processes, make_engine, tiny_home, tmp_path):
    tokenizer = load_tokenizer(tiny_home / "tokenizer")
    save_results(make_engine(), processes, tokenizer, tmp_path, {"held_out/ce/head_0": 1.5}, {"held_out": [1]})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"held_out/ce/head_0": 1.5}
    assert json.loads((tmp_path / "passages.json").read_text()) == {"held_out": [1]}


def test_a_model_that_cannot_be_written_is_one_line_and_the_old_one_stays(
    processes, make_engine, tiny_home, tmp_path, small_disk
):
    folder = tmp_path / "disk"
    small_disk(folder, "size=150k")
    (folder / "model").mkdir()
    (folder / "model" / "old").touch()
    (folder / "else").write_bytes(bytes(140_000))
    with pytest.raises(UserError) as error:
        save_model(make_engine(), processes, load_tokenizer(tiny_home / "tokenizer"), folder / "model")
    assert str(error.value).startswith(f"the final model {folder}/model cannot be saved: ")
    assert "no space left on device" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["else", "model", "model/old"]
