"""The three algorithms from nothing to a model, by the command that a newcomer types."""

import importlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoTokenizer

from wmtp_models import MtpForCausalLM

pytestmark = pytest.mark.slow
ALGORITHMS = ["rho1-wmtp", "critic-wmtp", "mtp-baseline"]
HEADS = range(4)
TINY_CONFIG = Path(__file__).parents[2] / "launch/configs/tiny.yaml"


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_tiny_run_leaves_its_figures_and_shows_them(tiny_run, algo):
    folder, printed = tiny_run(algo)
    metrics = json.loads((folder / "evaluation.json").read_text())
    expected = {f"noisy/{name}/head_{h}" for name in ("ce", "clean_ce") for h in HEADS}
    selection = {"noisy/excess_auc", "noisy/noise/precision", "noisy/noise/recall", "noisy/noise/kept/base64"}
    expected |= {"rho1-wmtp": selection, "critic-wmtp": {"noisy/value_auc"}}.get(algo, set())
    assert expected <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    shown = printed.split()
    for h in HEADS:
        assert metrics[f"noisy/ce/head_{h}"] < math.log(512)  # better than guessing
        assert f"{metrics[f'noisy/ce/head_{h}']:.3f}" in shown


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_tiny_run_learns_and_logs(tiny_run, algo):
    logged = scalars(tiny_run(algo)[0])
    expected = {
        f"train/{name}"
        for name in ("weighted_loss", "learning_rate", "gradient_norm", "tokens_per_second", "step_seconds")
    }
    expected |= {f"{name}/head_{h}" for name in ("ce", "selected_ratio", "selected_count") for h in HEADS}
    selection = {"noise/precision", "noise/recall", "noise/kept/clean"}
    selection |= {f"{name}/head_{h}" for name in ("reference_ce", "excess_mean", "threshold") for h in HEADS}
    critic = {"critic/value_loss", "critic/weight_entropy"}
    assert expected <= logged.keys()
    assert (selection <= logged.keys()) is (algo == "rho1-wmtp")
    assert (critic <= logged.keys()) is (algo == "critic-wmtp")
    assert [step for step, _ in logged["train/weighted_loss"]] == [10, 20, 30, 40]
    for h in HEADS:
        points = [value for _, value in logged[f"ce/head_{h}"]]
        assert points[-1] < points[0]


def test_the_selection_is_the_settings_share(tiny_run):
    logged = scalars(tiny_run("rho1-wmtp")[0])
    assert all(ratio == 1 for _, ratio in logged["selected_ratio/head_0"])
    for h in HEADS[1:]:
        assert [ratio for _, ratio in logged[f"selected_ratio/head_{h}"]] == pytest.approx([0.6] * 4, abs=0.01)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_final_model_loads_and_predicts(tiny_run, algo):
    folder, _ = tiny_run(algo)
    model = MtpForCausalLM.from_pretrained(folder / "model")
    assert isinstance(AutoModel.from_pretrained(folder / "model"), MtpForCausalLM)
    assert (model.config.horizon, model.config.value_head) == (4, algo == "critic-wmtp")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = tokenizer("def main():\n    return 0\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(rows).ce.isfinite().all()


def test_the_passage_marks_every_token(tiny_run):
    passage = json.loads((tiny_run("rho1-wmtp")[0] / "passages.json").read_text())["noisy"]
    assert {len(passage[name]) for name in ("tokens", "noise", "documents", "weights")} == {64}
    assert {w for token in passage["weights"] for w in token} == {0, 1, None}


def test_evaluate_finds_the_figures_of_the_run_again(tiny_run, call, workplace):
    folder, _ = tiny_run("rho1-wmtp")
    copy = workplace / "evaluated"
    shutil.copytree(folder, copy)
    (copy / "evaluation.json").unlink()
    arguments = ("--algo", "rho1-wmtp", "--config", TINY_CONFIG, "--output_dir", copy)
    done = call("launch/evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads((copy / "evaluation.json").read_text())
    assert again == pytest.approx(json.loads((folder / "evaluation.json").read_text()), rel=1e-6)


def test_one_tiny_run_after_the_other_needs_no_other_word(call, workplace, tiny_run):
    """A folder for every algorithm, made anew when the command is given again."""
    for algo in ALGORITHMS:
        tiny_run(algo)
    folder = workplace / "runs/tiny/mtp-baseline"
    left = folder / "left"
    left.touch()
    done = call("launch/train.py", "--algo", "mtp-baseline", "--tiny", "--steps", 1, "--data.evaluation_rows", 8)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "model").is_dir()
    assert not left.exists()


def test_a_run_that_was_cut_off_resumes_to_the_same_model(tiny_run, call, workplace):
    whole, _ = tiny_run("rho1-wmtp")
    halves = workplace / "halves"
    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "model")
    shutil.rmtree(halves / "checkpoints/step_00000040")
    (halves / "evaluation.json").unlink()
    done = call("launch/train.py", "--tiny", "--algo", "rho1-wmtp", "--output_dir", halves, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("model/model.safetensors", "evaluation.json"):
        assert (halves / name).read_bytes() == (whole / name).read_bytes(), name


def test_prepare_and_score_make_what_training_then_uses(tiny_run, call, workplace):
    tiny_run("rho1-wmtp")
    arguments = ("--config", TINY_CONFIG, "--reference.scores", workplace / "scores")
    prepared = call("launch/prepare.py", *arguments)
    assert prepared.returncode == 0, prepared.stderr[-3000:]
    assert [line.split(":")[0] for line in prepared.stdout.splitlines() if " documents, " in line] == ["train", "noisy"]
    scored = call("launch/score.py", *arguments)
    assert scored.returncode == 0, scored.stderr[-3000:]
    assert sorted(path.name for path in (workplace / "scores").iterdir()) == ["noisy", "train"]
    folder = workplace / "out" / "scored"
    done = call("launch/train.py", "--algo", "rho1-wmtp", *arguments, "--output_dir", folder, "--steps", 10)
    assert done.returncode == 0, done.stderr[-3000:]
    live = scalars(tiny_run("rho1-wmtp")[0])
    assert scalars(folder)["reference_ce/head_0"][0] == live["reference_ce/head_0"][0]


def test_what_a_launcher_says_of_its_processes_is_not_told_to_the_scripts_that_prepare(monkeypatch):
    """torchrun's agent keeps a store for its own processes; the one that trains the reference would wait for it."""
    monkeypatch.syspath_prepend(TINY_CONFIG.parents[1])
    tiny = importlib.import_module("tiny")
    for name in ("RANK", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "KEPT"):
        monkeypatch.setenv(name, "1")
    seen = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(tiny.subprocess, "run", lambda command, env, check: seen.append(env) or done)
    tiny._call("tools/build_corpus.py")
    (environment,) = seen
    assert environment["KEPT"] == "1"
    assert not {"RANK", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"} & environment.keys()
