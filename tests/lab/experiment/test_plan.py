import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wmtp_lab
from wmtp_core import UserError
from wmtp_lab.experiment.plan import Plan, merged, read_plan, reference_settings, require_same_plan, run_settings
from wmtp_models import MtpConfig, MtpForCausalLM
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings

PLANS = Path(wmtp_lab.__file__).parent / "plans"
MINIMAL: dict[str, Any] = {
    "corpus": {"vocabulary": 512},
    "deepspeed": {"train_batch_size": 8},
    "train": {
        "steps": 30,
        "evaluate_every": 10,
        "model": {"horizon": 4, "config": {"model_type": "llama", "hidden_size": 32}},
    },
    "reference": {"steps": 40},
    "arms": {"base": {"algo": "mtp-baseline"}, "next": {"algo": "mtp-baseline", "model": {"horizon": 1}}},
    "baseline": "base",
    "seeds": [1, 2],
    "decoding": {"prompts": 1, "prompt_tokens": 1, "new_tokens": 2},
}


def settings_of(tmp_path: Path, content: dict[str, Any]) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_settings(["--config", str(file)])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_arms_of_the_plans_differ_in_what_they_are_named_for_alone(name: str, tmp_path: Path) -> None:
    plan = read_plan(PLANS / f"{name}.yaml")
    assert len(plan.seeds) >= {"cpu": 3, "gpu": 5}[name]
    found = {arm: settings_of(tmp_path, run_settings(plan, tmp_path, arm, 7)) for arm in plan.arms}
    algos = {arm: settings.algo for arm, settings in found.items()}
    assert set(algos.values()) == {
        "mtp-baseline", "rho1-wmtp", "critic-wmtp", "random", "softmax-excess", "labelled"
    }  # fmt: skip
    rho1 = [settings.selection.k_percent for settings in found.values() if settings.algo == "rho1-wmtp"]
    assert rho1 == [0.4, 0.6, 0.8]
    assert [arm for arm, settings in found.items() if settings.model.horizon == 1] == ["next-token"]
    same = {"algo", "selection", "model", "output_dir"}
    assert len({settings.model_dump_json(exclude=same) for settings in found.values()}) == 1
    assert len({json.dumps(settings.model.config) for settings in found.values()}) == 1
    assert all(settings.optimizer.schedule == "constant" for settings in found.values())
    assert found["rho1-k0.6"].selection == found["random-k0.6"].selection


def test_the_plan_for_tuning_is_about_the_same_model_on_the_same_text(tmp_path: Path) -> None:
    plan, main = read_plan(PLANS / "cpu_tuning.yaml"), read_plan(PLANS / "cpu.yaml")
    assert (plan.corpus, plan.deepspeed, plan.reference) == (main.corpus, main.deepspeed, main.reference)
    apart = {"critic", "output_dir"}
    shared = [
        settings_of(tmp_path, run_settings(one, tmp_path, arm, 1)).model_dump(exclude=apart)
        for one, arm in ((plan, "rho1"), (main, "rho1-k0.6"))
    ]
    assert shared[0] == shared[1]
    found = {arm: settings_of(tmp_path, run_settings(plan, tmp_path, arm, 1)) for arm in plan.arms}
    assert all(settings.selection.k_percent == 0.6 for settings in found.values())
    others = {arm: settings.reference.scores for arm, settings in found.items()}
    assert others.pop("rho1-longer-reference") == tmp_path / "longer/scores"
    assert set(others.values()) == {tmp_path / "reference/scores"}


def test_the_reference_is_a_next_token_model_on_clean_text(tmp_path: Path) -> None:
    plan = read_plan(PLANS / "cpu.yaml")
    settings = settings_of(tmp_path, reference_settings(plan, tmp_path))
    assert settings.algo == "mtp-baseline"
    assert settings.model.horizon == 1
    assert settings.data.train == [str(tmp_path / "corpus/reference.jsonl")]
    assert settings.reference.scores is None
    assert settings.output_dir == tmp_path / "reference"
    arm = settings_of(tmp_path, run_settings(plan, tmp_path, "rho1-k0.6", 1))
    assert arm.reference.source == str(tmp_path / "reference/model")
    assert arm.data.evaluate == settings.data.evaluate


def test_the_gpu_plan_has_a_model_of_over_a_hundred_million_parameters() -> None:
    plan = read_plan(PLANS / "gpu.yaml")
    config = plan.train["model"]["config"] | {"vocab_size": plan.corpus.vocabulary}
    with torch.device("meta"):
        policy = MtpForCausalLM(MtpConfig(trunk=config, horizon=plan.train["model"]["horizon"]))
    assert 100e6 < sum(parameter.numel() for parameter in policy.parameters()) < 130e6
    assert plan.corpus.source == "wheels"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "mtp"}, "'mtp' is to be compared, but is none of the arms base, next"),
        ({"also_compare": [["base", "other"]]}, "'other' is to be compared"),
        ({"also_compare": [["next", "base"]]}, "next with base is compared anyway"),
        ({"also_compare": [["next", "next"]]}, "next with next is compared anyway, or with itself"),
        ({"seeds": [1, 1]}, "one stands twice"),
        ({"seeds": [0, 1]}, "or is 0, the reference's own"),
        ({"train": {"steps": 30}}, "train: set evaluate_every"),
        ({"arms": {"base": {}, "b": {"steps": 31}}}, "b: steps is what all arms have in common"),
        ({"arms": {"base": {}, "b": {"model": {"config": {"hidden_size": 8}}}}}, "b: model.config.hidden_size is what"),
        ({"arms_with_another": {"next": "longer"}}, "'longer' is none of other_references"),
        ({"other_references": {"a/b": {}}}, "'a/b': names a folder"),
        ({"seeds": []}, "seeds: "),
        ({"arms": {"base": {}, "a/b": {}}}, "'a/b': names a folder"),
        ({"arms": {"base": {}, "reference": {}}}, "not 'reference'"),
        (
            {"train": {"evaluate_every": 1, "data": {"tokenizer": "x"}}},
            "train: data.tokenizer is set by the experiment itself",
        ),
        ({"arms": {"base": {}, "b": {"seed": 1}}}, "b: seed is set by the experiment itself"),
        ({"step": 3}, "step: Extra inputs"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    read_plan(file)
    file.write_text(yaml.safe_dump(MINIMAL | change))
    with pytest.raises(UserError) as error:
        read_plan(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_plan_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    with pytest.raises(UserError, match="no such file"):
        read_plan(file)
    file.write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        read_plan(file)
    file.write_text("3")
    with pytest.raises(UserError, match="valid dictionary"):
        read_plan(file)


def test_changes_are_merged_key_by_key() -> None:
    settings = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(settings, {"a": {"c": 3}, "d": [2], "e": {"f": 4}}) == {
        "a": {"b": 1, "c": 3},
        "d": [2],
        "e": {"f": 4},
    }
    assert settings == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_a_folder_goes_on_with_more_arms_and_seeds_and_refuses_another_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    require_same_plan(Plan(**MINIMAL), file)  # there is none yet
    assert not file.exists()
    file.write_text(Plan(**MINIMAL).model_dump_json())
    more = {"seeds": [1, 2, 3], "processes": 2, "arms": {"more": {"algo": "random"}}, "decoding": {"prompts": 2}}
    require_same_plan(Plan(**merged(MINIMAL, more)), file)
    for change, message in [
        ({"train": {"steps": 31}}, r"train\.steps = 30, and the plan says 31"),
        ({"train": {"normalize_by": "selected"}}, r"train\.normalize_by = None, and the plan says 'selected'"),
        ({"arms": {"base": {"selection": {"k_percent": 0.5}}}}, r"arms\.base\.selection\.k_percent = None"),
        ({"seeds": [2, 3]}, r"seeds = \[1, 2\], and the plan says \[2\]"),
        ({"baseline": "next"}, "baseline = 'base'"),
        (
            {"other_references": {"longer": {}}, "arms_with_another": {"next": "longer"}},
            r"arms_with_another\.next = None, and the plan says 'longer'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            require_same_plan(Plan(**merged(MINIMAL, change)), file)
    file.write_text(Plan(**merged(MINIMAL, more)).model_dump_json())
    with pytest.raises(UserError, match=r"arms\.more\.algo = 'random', and the plan says None"):
        require_same_plan(Plan(**MINIMAL | {"seeds": [1, 2, 3]}), file)
