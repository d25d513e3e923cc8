"""The whole experiment in miniature: two arms, two seeds, a model of a few thousand weights."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked_script import ForkedScript

from wmtp_core import UserError
from wmtp_lab.experiment import __main__ as experiment
from wmtp_lab.experiment import processes, runs
from wmtp_lab.experiment.results import Results, open_results

pytestmark = pytest.mark.slow

PLAN: dict[str, Any] = {
    "corpus": {"limit_bytes": 600_000, "vocabulary": 512},
    "seeds": [1, 2],
    "processes": 2,
    "train": {
        "steps": 12,
        "log_every": 6,
        "evaluate_every": 4,
        "data": {"sequence_length": 64, "evaluation_rows": 16},
        "model": {
            "horizon": 4,
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
            },
        },
        "optimizer": {"learning_rate": 0.01, "schedule": "constant"},
    },
    "deepspeed": {"train_batch_size": 8, "zero_optimization": {"stage": 1}},
    "reference": {"steps": 20, "evaluate_every": 0},
    "baseline": "rho1",
    "arms": {
        "next-token": {"algo": "mtp-baseline", "model": {"horizon": 1}},
        "rho1": {"algo": "rho1-wmtp", "selection": {"k_percent": 0.5}, "model": {"head_kind": "sequential"}},
    },
    "decoding": {"prompts": 4, "prompt_tokens": 32, "new_tokens": 9},
    "timed_steps": 2,
}


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    request.getfixturevalue("processes")  # by name, since a module is called so here
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "_start", start_forked)
        patch.setattr(experiment, "describe_commit", lambda checkout: f"0123abc of {checkout.name}")
        experiment.main([str(folder / "plan.yaml"), "--output", str(folder / "out")])
    torch.set_num_threads(threads)
    return folder


def start_forked(job: processes.Job, slot: int, count: int) -> ForkedScript:
    """Start a job as `processes._start` does, which test_processes.py tests, without importing everything anew."""
    environment = {name: value for name, value in os.environ.items() if name not in processes.LAUNCHER_VARIABLES}
    environment["OMP_NUM_THREADS"] = str(processes.threads_of(count))
    job.log.parent.mkdir(parents=True, exist_ok=True)
    script, *arguments = job.arguments
    return ForkedScript(Path(script), arguments, environment, Path.cwd(), job.log, job.log)


@pytest.fixture
def results(home: Path) -> Results:
    return open_results(home / "out/results.parquet")


def test_every_run_is_recorded_with_its_curves(results: Results) -> None:
    for seed in (1, 2):
        for arm, horizon in (("next-token", 1), ("rho1", 4)):
            assert results.series[arm, seed, runs.LOSS].steps == [0, 4, 8, 12]
            assert results.has(arm, seed, f"evaluation/generated/ce/head_{horizon - 1}")
            assert not results.has(arm, seed, f"evaluation/clean/ce/head_{horizon}")
        assert 0 <= results.final("rho1", seed, "evaluation/noisy/excess_auc") <= 1
        assert 0 <= results.final("rho1", seed, "decoding/greedy/accepted_per_forward") <= 3


def test_arms_of_a_seed_begin_at_the_same_weights_and_seeds_at_others(results: Results) -> None:
    start = {key: series.values[0] for key, series in results.series.items() if key[2] == runs.LOSS}
    for seed in (1, 2):
        assert start["rho1", seed, runs.LOSS] == pytest.approx(start["next-token", seed, runs.LOSS], rel=1e-6)
    assert start["rho1", 1, runs.LOSS] != pytest.approx(start["rho1", 2, runs.LOSS], rel=1e-6)


def test_costs_tell_four_heads_from_one(results: Results) -> None:
    for metric, count in (("cost/flop", 3), ("cost/seconds", 2), ("cost/peak_bytes", 1)):
        for arm in ("next-token", "rho1", "reference"):
            values = results.series[arm, None, metric].values
            assert len(values) == count
            assert min(values) > 0
    flop = {arm: results.final(arm, None, "cost/flop") for arm in ("next-token", "rho1", "reference")}
    assert 2 < flop["rho1"] / flop["next-token"] < 4
    assert flop["reference"] == flop["next-token"]  # but for the text, which these products do not depend on


def test_a_table_of_bigrams_was_counted_for_every_seed(results: Results) -> None:
    for seed in (1, 2):
        losses = [results.final("bigram table", seed, f"evaluation/clean/ce/head_{head}") for head in range(4)]
        assert losses[0] < min(losses[1:])  # tokens further apart tell less of each other
        assert results.final("unigram entropy", seed, runs.LOSS) < math.log(512)
    assert results.final("bigram table", 1, runs.LOSS) != results.final("bigram table", 2, runs.LOSS)


def test_every_part_names_its_commit(results: Results) -> None:
    parts = results.facts["commits"]
    assert list(parts) == ["runs", "decoding", "count tables", "costs"]
    assert all(commits == [f"0123abc of {processes.ROOT.name}"] for commits in parts.values())


def test_checkpoints_go_when_their_rows_stand(home: Path, results: Results) -> None:
    assert results.file == home / "out/results.parquet"
    assert len(list((home / "out/runs").glob("*/*/model"))) == 4
    assert not list((home / "out/runs").glob("*/*/checkpoints"))


def test_the_same_command_trains_nothing_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes, "_start", never)
    before, page = (home / "out/results.parquet").read_bytes(), home / "out/report/index.html"
    page.unlink()
    experiment.main([str(home / "plan.yaml"), "--output", str(home / "out")])
    assert page.exists()
    assert (home / "out/results.parquet").read_bytes() == before
    page.unlink()
    experiment.main(["--report-only", "--output", str(home / "out")])
    assert page.exists()


def test_what_was_stopped_after_the_training_goes_on_there(
    home: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_start", lambda *_: pytest.fail("a process was started"))
    before = {key: list(series.values) for key, series in results.series.items()}
    results.forget("cost/")
    results.forget("decoding/")
    results.series = {k: s for k, s in results.series.items() if k[0] not in ("bigram table", "unigram entropy")}
    results.save()
    with pytest.raises(UserError, match="holds no complete results"):
        experiment.main(["--report-only", "--output", str(home / "out")])
    threads = torch.get_num_threads()
    experiment.main([str(home / "plan.yaml"), "--output", str(home / "out")])
    torch.set_num_threads(threads)
    after = {key: list(series.values) for key, series in open_results(results.file).series.items()}
    apart = ("cost/seconds", "cost/peak_bytes")
    assert {k: v for k, v in after.items() if k[2] not in apart} == {
        k: v for k, v in before.items() if k[2] not in apart
    }
    assert after.keys() == before.keys()


def test_another_way_of_decoding_is_measured_anew(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "_start", lambda *_: pytest.fail("a process was started"))
    out, plan = tmp_path / "out", tmp_path / "plan.yaml"
    shutil.copytree(home / "out", out)
    before = open_results(out / "results.parquet")
    decoding = {"prompts": 2, "prompt_tokens": 32, "new_tokens": 9}
    plan.write_text(yaml.safe_dump(PLAN | {"decoding": decoding}))
    threads = torch.get_num_threads()
    monkeypatch.setattr(experiment, "planned_runs", lambda plan, _: runs.planned_runs(plan, home / "out"))
    experiment.main([str(plan), "--output", str(out)])
    torch.set_num_threads(threads)
    after = open_results(out / "results.parquet")
    assert after.facts["plan"]["decoding"] == decoding
    assert after.series.keys() == before.series.keys()


def test_a_plan_that_was_refused_can_be_fixed(home: Path, tmp_path: Path) -> None:
    wrong, plan = tmp_path / "wrong.yaml", home / "out/plan.json"
    before = plan.read_bytes()
    for change, message in [
        ({"arms": PLAN["arms"] | {"third": {"algo": "rho1-wmtp", "selection": {"k_precent": 0.5}}}}, "k_precent"),
        ({"decoding": {"prompts": 4, "prompt_tokens": 60, "new_tokens": 9}}, "has positions for 64; lower one of them"),
    ]:
        wrong.write_text(yaml.safe_dump(PLAN | change))
        with pytest.raises(UserError, match=message):
            experiment.main([str(wrong), "--output", str(home / "out")])
        assert plan.read_bytes() == before


def test_other_versions_do_not_mix(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "describe_versions", lambda: {"python": "9.9"})
    with pytest.raises(UserError, match=r"was begun with python .*, and here is 9\.9"):
        experiment.main([str(home / "plan.yaml"), "--output", str(home / "out")])


def test_what_cannot_begin_is_refused_before_any_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="holds no complete results"):
        experiment.main(["--report-only", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="name a plan"):
        experiment.main(["--output", str(tmp_path)])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(PLAN | {"arms": PLAN["arms"] | {"third": {"algo": "rho1-wmtp", "stepz": 3}}}))
    with pytest.raises(UserError, match="stepz"):
        experiment.main([str(wrong), "--output", str(tmp_path / "new")])
    monkeypatch.setenv("WMTP_STEPS", "3")
    with pytest.raises(UserError, match="WMTP_STEPS: would change every run unseen"):
        experiment.main([str(home / "plan.yaml"), "--output", str(home / "out")])
