import json
from pathlib import Path

import pytest
from scaling import engines

import scale
from wmtp_train.settings.command_line import load_settings

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/scale.md"
CONFIG = str(ROOT / "launch/configs/scale_1b.yaml")
GIVEN = ["--config", CONFIG, "--gpus", "4", "--micro-batch", "1"]


@pytest.mark.parametrize(
    "command",
    [
        "python tools/scale.py --config launch/configs/scale_1b.yaml --gpus 64",
        "python tools/scale.py --config launch/configs/scale_7b.yaml --gpus 512",
    ],
)
def test_the_page_shows_what_its_command_prints(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert scale.main(command.split()[2:]) == 0
    page = PAGE.read_text()
    assert command in page
    assert capsys.readouterr().out in page.partition(command)[2]


@pytest.mark.parametrize("name", ["scale_1b", "scale_7b"])
def test_a_configuration_names_a_file_of_ds_configs_whose_batch_sizes_count(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = f"launch/configs/{name}.yaml"
    assert load_settings(["--config", config]).deepspeed_config == engines.FOLDER.relative_to(ROOT) / "zero2.json"
    assert scale.main(["--config", config, "--gpus", "2"]) == 0
    assert "micro-batch m = 8, accumulation a = 1," in capsys.readouterr().out
    assert scale.main(["--config", config, "--gpus", "2", "--micro-batch", "2", "--accumulation", "3"]) == 0
    assert "micro-batch m = 2, accumulation a = 3," in capsys.readouterr().out


def test_the_settings_of_training_are_options_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        scale.main([*GIVEN, "--model.horizon", "2", "--data.sequence_length", "512", "--selection.k_percent", "1"]) == 0
    )
    said = capsys.readouterr().out
    assert "S = 512, N = mS = 512, H = 2, k = 1;" in said
    assert "2 heads" in said


def test_a_smaller_reference(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["--config", str(ROOT / "launch/configs/scale_7b.yaml"), "--gpus", "4", "--micro-batch", "1"]
    assert scale.main([*large, "--reference", CONFIG]) == 0
    assert "P′ = 1,100,048,384" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--gpus", "0"], "--gpus 0: give a number above 0"),
        (["--accumulation", "-1"], "--accumulation -1: give a number above 0"),
        (["--deepspeed_config", "absent.json"], "deepspeed_config absent.json: no such file"),
        (["--utilisation", "1.5"], "--utilisation 1.5: give a share of the peak, at most 1"),
        (["--tokens", "nan"], "--tokens nan: give a number above 0"),
        (["--config", "absent.yaml"], "--config absent.yaml: no such file or directory; launch/configs holds examples"),
        (["--reference", "absent.yaml"], "--config absent.yaml: no such file"),
        (["--model.horizonn", "4"], "horizonn"),
        (["--model.head_kind", "mlp"], "model.head_kind is 'mlp'; only 'layer' is calculated"),
        (["--model.config", '{"model_type": "gpt2"}'], "model_type is 'gpt2'; llama, mistral, qwen2 can be calculated"),
        (["--model.config", '{"model_type": "llama"}'], "vocab_size is missing"),
        (["--model.config", '{"model_type": "llama", "vocab_size": 9, "width": 3}'], "llama has no width"),
    ],
)
def test_bad_input_is_one_line(changed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main([*GIVEN, *changed]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_reference_of_other_tokens_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
    other.write_text(json.dumps({"model": {"config": config | {"num_attention_heads": 2}}}))
    assert scale.main([*GIVEN, "--reference", str(other)]) == 2
    assert "its vocabulary is 64, the policy's 32000" in capsys.readouterr().err
