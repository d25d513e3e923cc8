"""What a person can get wrong: one line that says what, where and how to fix it, and nothing half-written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import ReferenceModel, weights_fingerprint
from wmtp_train.commands import train
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.lifecycle import start_processes
from wmtp_train.settings.command_line import load_settings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the environment."""
    for name in list(os.environ):
        if name.startswith("WMTP_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(make_settings, tmp_path: Path) -> dict[str, Any]:
    """The content of a YAML file that trains rho1-wmtp; the tests damage it."""
    settings = make_settings(algo="rho1-wmtp", steps=1)
    return json.loads(settings.model_dump_json(exclude_unset=True))


@pytest.fixture
def refusal(processes, clean_environment, monkeypatch, capfd) -> Callable[..., str]:
    """The one line that a command answers to settings and arguments."""

    def refuse(config: dict[str, Any], *arguments: str, command: str = "train") -> str:
        path = Path(config["output_dir"]).with_name("run.yaml")
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr(sys, "argv", [f"wmtp {command}", "--config", str(path), *arguments])
        with pytest.raises(UserError) as error:
            import_module(f"wmtp_train.commands.{command}").main()
        assert "\n" not in str(error.value)
        return str(error.value)

    return refuse


def test_the_undamaged_settings_train(processes, clean_environment, config, monkeypatch, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(tmp_path / "run.yaml")])
    train.main()
    assert (tmp_path / "run/evaluation.json").is_file()


# ---- damage: (settings, folder) → what the line has to say


def unknown_algorithm(config, folder):
    config["algo"] = "rho2-wmtp"
    return ["'rho2-wmtp'", "choose one of mtp-baseline, critic-wmtp, rho1-wmtp"]


def unknown_key(config, folder):
    config["selection"] = {"k_precent": 0.5}
    return ["selection.k_precent", "did you mean 'k_percent'?"]


def k_percent(value):
    def damage(config, folder):
        config["selection"] = {"k_percent": value}
        return ["selection.k_percent", str(value)]

    damage.__name__ = f"k_percent_{value}"
    return damage


def short_rows(config, folder):
    config["data"]["sequence_length"] = 1
    return ["data.sequence_length", "1", "2"]


def no_reference(config, folder):
    del config["reference"]
    return ["rho1-wmtp", "reference.source", "reference.scores"]


def no_model(config, folder):
    del config["model"]["config"]
    return ["model.source", "model.config"]


def no_rewards(config, folder):
    config["algo"] = "critic-wmtp"
    config["data"]["train"] = [text_file(folder, json.dumps({"text": "words " * 50}))]
    return ["critic-wmtp", "`reward`", "data.train"]


def other_tokenizer(config, folder):
    other = shutil.copytree(config["reference"]["source"], folder / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(other)
    config["reference"]["source"] = str(other)
    return [str(other), "another tokenizer", "'<extra>'", "train the reference with"]


def other_vocabulary(config, folder):
    other = shutil.copytree(config["reference"]["source"], folder / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 8)
    model.save_pretrained(other)
    config["reference"]["source"] = str(other)
    return [str(other), f"vocabulary of {size + 8}", str(size)]


def scores_of_another_corpus(config, folder):
    settings_file = folder / "score.yaml"
    settings_file.write_text(yaml.safe_dump(config))
    reference = ReferenceModel.load(config["reference"]["source"])
    settings, mesh = load_settings(["--config", str(settings_file)]), start_processes()
    for name, data in load_sources(data_spec(settings, tokenizer_from_settings(settings)), mesh).items():

        def losses(batch):
            return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

        fingerprint = weights_fingerprint(config["reference"]["source"])
        ScoringJob(data.prepared, losses, folder / "scores" / name, fingerprint, mesh, 4).run()
    config["reference"]["scores"] = str(folder / "scores")
    config["data"]["train"] = config["data"]["train"] + [text_file(folder, json.dumps({"text": "one more"}))]
    return [str(folder / "scores/train"), "another corpus", "wmtp score"]


def text_file(folder, content, name="damaged.jsonl"):
    (folder / name).write_text(content)
    return str(folder / name)


def broken_line(config, folder):
    path = text_file(folder, '{"text": "fine"}\n{"text": "no end\n')
    config["data"]["train"] = [path]
    return [f"{path}:2", "broken JSON", "fix this line"]


def line_without_text(config, folder):
    path = text_file(folder, '{"txt": "misnamed"}\n')
    config["data"]["train"] = [path]
    return [f"{path}:1", "'txt'", "`text`"]


def empty_data(config, folder):
    path = text_file(folder, "")
    config["data"]["train"] = [path]
    return [path, "no document"]


def no_files(config, folder):
    del config["data"]["train"]
    return ["data.train", "names no file"]


def missing_files(config, folder):
    config["data"]["train"] = [f"{folder}/absent-*.jsonl"]
    return [f"{folder}/absent-*.jsonl", "matches no file"]


def token_beyond_the_vocabulary(config, folder):
    tokenizer = AutoTokenizer.from_pretrained(config["data"]["tokenizer"])
    size = len(tokenizer)
    tokenizer.add_tokens(["return"])
    tokenizer.save_pretrained(folder / "tokenizer")
    config["data"]["tokenizer"] = str(folder / "tokenizer")
    config["model"] = {"source": config["reference"]["source"], "horizon": 3}
    return [f"{size + 1} tokens", f"vocabulary {size}", "data.tokenizer"]


def every_label_ignored(config, folder):
    backend = Tokenizer(models.BPE())  # knows the letter a and drops everything else
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(["a"], trainers.BpeTrainer(special_tokens=["<eos>"], show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder / "tokenizer")
    path = text_file(folder, json.dumps({"text": "xyz " * 20}))
    config["data"] |= {"train": [path], "evaluate": {}, "tokenizer": str(folder / "tokenizer")}
    return [path, "every label is ignored"]


def contradictory_deepspeed(config, folder):
    sizes = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    config["deepspeed_config"] = text_file(folder, json.dumps(sizes), "contradiction.json")
    return [config["deepspeed_config"], "train_batch_size 16", "4", "2", "fix"]


def unknown_key_of_deepspeed(config, folder):
    config["deepspeed_config"] = text_file(folder, '{"zero_optimisation": {"stage": 2}}', "typing_error.json")
    return [config["deepspeed_config"], "'zero_optimisation'", "did you mean 'zero_optimization'?"]


def unknown_key_of_zero(config, folder):
    config["deepspeed_config"] = text_file(folder, '{"zero_optimization": {"stgae": 2}}', "typing_error.json")
    return [config["deepspeed_config"], "stgae"]


DAMAGE = [
    unknown_algorithm,
    unknown_key,
    k_percent(0),
    k_percent(1.5),
    k_percent(float("nan")),
    short_rows,
    no_reference,
    no_model,
    no_rewards,
    other_tokenizer,
    other_vocabulary,
    scores_of_another_corpus,
    broken_line,
    line_without_text,
    empty_data,
    no_files,
    missing_files,
    token_beyond_the_vocabulary,
    every_label_ignored,
    contradictory_deepspeed,
    unknown_key_of_deepspeed,
    unknown_key_of_zero,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(refusal, config, tmp_path, damage):
    expected = damage(config, tmp_path)
    line = refusal(config)
    for part in expected:
        assert part in line
    assert not Path(config["output_dir"]).exists()


def test_a_folder_that_is_no_checkpoint(refusal, config):
    folder = Path(config["output_dir"]) / "checkpoints/step_00000001"
    folder.mkdir(parents=True)
    line = refusal(config, "--resume")
    assert str(folder) in line
    assert "not a checkpoint" in line
    assert [path for path in Path(config["output_dir"]).rglob("*") if path.is_file()] == []


def test_scoring_needs_a_reference_and_a_place(refusal, config):
    assert "reference.scores" in refusal(config, command="score")
    assert "reference.source" in refusal({**config, "reference": {"scores": "somewhere"}}, command="score")


def test_scoring_asks_for_a_fingerprint_before_it_loads(refusal, config, tmp_path, monkeypatch):
    """A model of minutes is not loaded to hear that its scores could not be told from another's."""
    monkeypatch.setattr(ReferenceModel, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "bare").mkdir()
    reference = {"source": str(tmp_path / "bare"), "scores": str(tmp_path / "scores")}
    assert "does not hold a config.json" in refusal({**config, "reference": reference}, command="score")


def test_evaluating_needs_sets_and_a_model(refusal, config):
    line = refusal(config, command="evaluate")
    assert f"{config['output_dir']}/model" in line
    assert "data.evaluate names no held-out set" in refusal(
        {**config, "data": {**config["data"], "evaluate": {}}}, command="evaluate"
    )


def test_preparing_needs_data(refusal, config):
    del config["data"]["train"]
    assert "data.train names no file" in refusal(config, command="prepare")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [unknown_algorithm, broken_line, contradictory_deepspeed], ids=lambda d: d.__name__)
def test_the_shell_gets_one_line_and_exit_code_2(call, config, tmp_path, damage):
    expected = damage(config, tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = call("launch/train.py", "--config", tmp_path / "run.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for part in expected:
        assert part in line
