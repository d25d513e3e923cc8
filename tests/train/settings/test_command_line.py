import os
from pathlib import Path

import pytest

from wmtp_core import UserError
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.help import Parser


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment enters."""
    for name in list(os.environ):
        if name.startswith("WMTP_"):
            monkeypatch.delenv(name)


def yaml_file(folder: Path, content: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def test_each_source_overrides_the_ones_below_it_key_by_key(tmp_path, monkeypatch):
    config = yaml_file(
        tmp_path, "steps: 11\nseed: 11\nlog_every: 11\ndata: {workers: 11, sequence_length: 11, train: [a.txt]}"
    )
    monkeypatch.setenv("WMTP_STEPS", "22")
    monkeypatch.setenv("WMTP_SEED", "22")
    monkeypatch.setenv("WMTP_DATA__WORKERS", "22")
    settings = load_settings(["--config", config, "--steps", "33", "--data.sequence_length", "33"])
    assert (settings.steps, settings.seed, settings.log_every, settings.keep_checkpoints) == (33, 22, 11, 2)
    assert (settings.data.sequence_length, settings.data.workers, settings.data.train) == (33, 22, ["a.txt"])
    assert settings.data.shuffle_seed == 0


def test_the_yaml_file_may_be_named_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WMTP_CONFIG", yaml_file(tmp_path, "steps: 5"))
    assert load_settings([]).steps == 5


def test_tiny_stands_for_its_file_unless_a_config_is_given(tmp_path):
    tiny, own = tmp_path / "tiny.yaml", tmp_path / "own.yaml"
    tiny.write_text("steps: 5\nseed: 5")
    own.write_text("steps: 6")
    assert load_settings(["--tiny", "--seed", "7"], tiny).model_dump(include={"steps", "seed", "tiny"}) == {
        "steps": 5,
        "seed": 7,
        "tiny": True,
    }
    assert load_settings(["--tiny", "--config", str(own)], tiny).steps == 6
    assert load_settings([], tiny).steps == 1000


@pytest.mark.parametrize("form", ["--data.evaluate={}", "--data.evaluate {}"])
def test_a_model_and_held_out_sets_of_the_command_line_are_not_mixed_with_those_of_the_file(tmp_path, form):
    text = "{data: {evaluate: {a: [a.txt]}, workers: 1}, model: {config: {model_type: llama, hidden_size: 8}}}"
    config = yaml_file(tmp_path, text)
    settings = load_settings(["--config", config, *form.replace("{}", '{"b":["b.txt"]}').split()])
    assert (settings.data.evaluate, settings.data.workers) == ({"b": ["b.txt"]}, 1)
    assert load_settings(["--config", config, *form.split()]).data.evaluate == {}
    settings = load_settings(["--config", config, "--model.config", '{"model_type": "gpt2"}'])
    assert settings.model.config == {"model_type": "gpt2"}
    empty = yaml_file(tmp_path, "model:\nsteps: 3")
    assert load_settings(["--config", empty, "--model.config", '{"model_type": "gpt2"}']).model == settings.model


def test_what_the_launcher_adds_is_passed_over():
    assert load_settings(["--local_rank=1", "--steps", "4"]).steps == 4


def test_a_list_and_a_mapping_come_as_json_from_the_command_line():
    settings = load_settings(["--data.train", '["a.jsonl", "b.txt"]', "--data.evaluate", '{"clean": ["c.txt"]}'])
    assert settings.data.train == ["a.jsonl", "b.txt"]
    assert settings.data.evaluate == {"clean": ["c.txt"]}


UNKNOWN_KEYS = [
    ("stepz: 1", "setting stepz", "did you mean 'steps'?"),
    ("data: {sequence_lenght: 1}", "setting data.sequence_lenght", "did you mean 'sequence_length'?"),
    ("selection: {qqq: 1}", "setting selection.qqq", "remove it"),
]


@pytest.mark.parametrize(("content", "where", "fix"), UNKNOWN_KEYS)
def test_an_unknown_key_of_the_file_is_refused_with_what_it_might_mean(tmp_path, content, where, fix):
    with pytest.raises(UserError) as error:
        load_settings(["--config", yaml_file(tmp_path, content)])
    assert where in str(error.value)
    assert fix in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argument", ["--stepz", "--data.sequence_lenght"])
def test_an_unknown_option_is_refused(argument):
    with pytest.raises(UserError, match=rf"command line: .*{argument}.*--help"):
        load_settings([argument, "5"])


def test_an_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("WMTP_STEPZ", "5")
    with pytest.raises(UserError, match="environment variable WMTP_STEPZ"):
        load_settings([])


def test_an_unknown_nested_variable_is_refused(monkeypatch):
    monkeypatch.setenv("WMTP_DATA__SEQUENCE_LENGHT", "5")
    with pytest.raises(UserError, match=r"setting data\.sequence_lenght: .*did you mean 'sequence_length'"):
        load_settings([])


BAD_VALUES = [
    (["--selection.k_percent", "0"], "selection.k_percent = '0'"),
    (["--selection.k_percent", "1.5"], "selection.k_percent = '1.5'"),
    (["--selection.k_percent", "nan"], "selection.k_percent = 'nan'"),
    (["--data.sequence_length", "1"], "data.sequence_length = '1'"),
    (["--steps", "0"], "steps = '0'"),
    (["--steps", "many"], "steps = 'many'"),
    (["--epochs", "0"], "epochs = '0'"),
    (["--epochs", "2", "--steps", "9"], "steps and epochs exclude each other"),
    (["--optimizer.learning_rate", "nan"], "optimizer.learning_rate = 'nan'"),
    (["--normalize_by", "tokens"], "normalize_by = 'tokens'"),
    (["--model.source", "m", "--model.config", '{"model_type": "llama"}'], "model.source and model.config exclude"),
]


@pytest.mark.parametrize(("arguments", "what"), BAD_VALUES)
def test_a_value_out_of_bounds_is_refused_by_name(arguments, what):
    with pytest.raises(UserError) as error:
        load_settings(arguments)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_percentage_for_the_fraction_k_percent_is_told_what_was_meant(tmp_path):
    for read in (["--selection.k_percent", "60"], ["--config", yaml_file(tmp_path, "selection: {k_percent: 60}")]):
        with pytest.raises(
            UserError, match=r"selection\.k_percent = '?60'?: .*; it is a fraction: did you mean 0\.6\?$"
        ):
            load_settings(read)


def test_the_command_line_says_the_length_of_a_run_in_either_way(tmp_path):
    in_steps, in_epochs = yaml_file(tmp_path, "steps: 7", "s.yaml"), yaml_file(tmp_path, "epochs: 2", "e.yaml")
    assert load_settings(["--config", in_steps, "--epochs", "0.5"]).epochs == 0.5
    settings = load_settings(["--config", in_epochs, "--steps=9"])
    assert (settings.steps, settings.epochs) == (9, None)
    with pytest.raises(UserError, match=r"^steps and epochs exclude each other: remove one$"):
        load_settings(["--config", yaml_file(tmp_path, "{steps: 7, epochs: 2}")])


@pytest.mark.parametrize("k_percent", ["0", "1.5", ".nan"])
def test_a_bad_value_in_the_file_is_refused_by_name(tmp_path, k_percent):
    with pytest.raises(UserError, match=r"setting selection\.k_percent = "):
        load_settings(["--config", yaml_file(tmp_path, f"selection: {{k_percent: {k_percent}}}")])


def test_several_faults_are_told_together(tmp_path):
    with pytest.raises(UserError) as error:
        load_settings(["--config", yaml_file(tmp_path, "steps: 0\nseed: -1")])
    assert sorted(part.split(":")[0] for part in str(error.value).split("; ")) == [
        "setting seed = -1",
        "setting steps = 0",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("steps: [1", "not YAML"),
        ("- steps", "a mapping of settings"),
        ("", "a mapping of settings"),
        ("yes: 1", "True"),  # YAML's own reading of the key
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path, content, problem):
    path = yaml_file(tmp_path, content)
    with pytest.raises(UserError) as error:
        load_settings(["--config", path])
    assert path in str(error.value)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        load_settings(["--config", str(tmp_path / "absent.yaml")])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=f"--config {tmp_path}"):
        load_settings(["--config", str(tmp_path)])


def test_options_alone_are_refused_in_one_line_too() -> None:
    parser = Parser(prog="odd.py", allow_abbrev=False)
    parser.add_argument("--number", type=int)
    assert parser.parse_args(["--number", "3"]).number == 3
    with pytest.raises(
        UserError, match=r"command line: argument --number: invalid int value: 'x'; --help lists"
    ) as caught:
        parser.parse_args(["--number", "x"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "found"), [("0.6", 0.6), ("[1, 0.5]", [1, 0.5]), ("1,0.5", [1, 0.5]), ("[0.6]", 0.6)]
)
def test_head_coefficients_are_a_number_or_a_list(given, found):
    assert load_settings(["--head_coefficients", given]).head_coefficients == found
