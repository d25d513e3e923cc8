"""What interrupts a run and how it goes on: resume, refusals, losses that are not finite, and what is left on disk."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM
from wmtp_train.checkpoint import newest_whole_checkpoint, saving
from wmtp_train.data.loading import data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.step import Step

pytestmark = pytest.mark.slow


def cut_off(finished: Path, folder: Path, step: int) -> None:
    """Makes `folder` what `finished` was when a kill after `step` steps and their checkpoint ended it."""
    shutil.copytree(finished, folder)
    for left in ("model", "evaluation.json", "passages.json"):
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp", "random"])
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(
    make_trainer, write_deepspeed, tmp_path, algo, stage
):
    changes = {
        "algo": algo,
        "steps": 4,
        "save_every": 2,
        "critic": {"value_warmup_steps": 1},
        "deepspeed_config": write_deepspeed(stage=stage, train_batch_size=4, gradient_accumulation_steps=2),
    }
    whole = make_trainer("whole", **changes)
    metrics = whole.train()
    cut_off(tmp_path / "whole", tmp_path / "halves", step=2)
    resumed = make_trainer("halves", resume=True, **changes)
    assert resumed.train() == metrics
    assert [signals.step for signals, _ in resumed.loop.run.step.weighting.seen[:4]] == [2, 2, 3, 3]
    one, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert (tmp_path / "halves" / "passages.json").read_text() == (tmp_path / "whole" / "passages.json").read_text()


def test_random_draws_of_the_model_go_on_too(make_trainer, tiny_llama, tmp_path):
    changes = {"algo": "mtp-baseline", "steps": 4, "save_every": 2, "data": {"evaluate": {}}}
    changes["model"] = {"config": {**tiny_llama, "attention_dropout": 0.5}}
    make_trainer("whole", **changes).train()
    cut_off(tmp_path / "whole", tmp_path / "halves", step=2)
    make_trainer("halves", resume=True, **changes).train()
    one, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    changes["model"] = {"config": tiny_llama}
    make_trainer("still", **changes).train()
    still = load_file(tmp_path / "still" / "model" / "model.safetensors")
    assert not all(torch.equal(one[name], still[name]) for name in one)


def test_a_resumed_run_has_one_point_a_step(make_trainer, tmp_path):
    changes = {"algo": "mtp-baseline", "steps": 4, "save_every": 2, "evaluate_every": 2}
    changes["monitor"] = ["tensorboard", "jsonl"]
    make_trainer("whole", **changes).train()
    cut_off(tmp_path / "whole", tmp_path / "halves", step=2)
    make_trainer("halves", resume=True, **changes).train()
    loss, lines = {}, {}
    for run in ("whole", "halves"):
        text = (tmp_path / run / "metrics.jsonl").read_text()
        lines[run] = [
            {name: value for name, value in json.loads(line).items() if "second" not in name}
            for line in text.splitlines()
        ]
        events = EventAccumulator(str(tmp_path / run / "tensorboard"))
        events.Reload()
        loss[run] = [(point.step, point.value) for point in events.Scalars("train/weighted_loss")]
        held_out = events.Scalars("evaluation/held_out/ce/head_0")
        assert [point.step for point in held_out if point.step] == [2, 4]
    assert loss["halves"] == loss["whole"]
    assert [step for step, _ in loss["whole"]] == [1, 2, 3, 4]
    trained = [line["step"] for line in lines["halves"] if "train/weighted_loss" in line]
    assert trained == [1, 2, 3, 4]
    assert lines["halves"] == lines["whole"]


def test_resuming_without_a_checkpoint_starts_the_run(make_trainer):
    trainer = make_trainer(algo="mtp-baseline", resume=True, steps=1)
    assert trainer.loop.number == 0
    assert trainer.train()


def test_resuming_a_finished_run_keeps_its_results(make_trainer, tmp_path):
    make_trainer(algo="mtp-baseline").train()
    before = snapshot(tmp_path / "run")
    make_trainer(algo="mtp-baseline", resume=True).train()
    after = snapshot(tmp_path / "run")
    for name in ("evaluation.json", "passages.json", "model/model.safetensors"):
        assert after[name] == before[name], name


def test_a_run_that_was_cut_off_between_its_last_checkpoint_and_its_end_is_finished(make_trainer, tmp_path):
    make_trainer("whole", algo="mtp-baseline").train()
    cut_off(tmp_path / "whole", tmp_path / "halves", step=3)
    make_trainer("halves", algo="mtp-baseline", resume=True).train()
    for name in ("evaluation.json", "passages.json", "model/model.safetensors"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_an_existing_run_is_not_written_over(make_trainer, tmp_path):
    make_trainer(algo="mtp-baseline").train()
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match=rf"output_dir {tmp_path}/run holds a run; --resume it"):
        make_trainer(algo="mtp-baseline", steps=9).train()
    assert snapshot(tmp_path / "run") == before


def poison(trainer, step, find_weight):
    """From `step` completed steps on, one weight of the policy is NaN."""
    train_step = trainer.loop.train_step

    def poisoned():
        if trainer.loop.number == step:
            with torch.no_grad():
                find_weight(trainer.loop.engine.policy).fill_(math.nan)
        train_step()

    trainer.loop.train_step = poisoned


def weight_of_head_2(policy: MtpForCausalLM) -> torch.Tensor:
    return policy.heads.layers[1].mlp.down_proj.weight


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_its_checkpoint(
    make_trainer, write_deepspeed, tmp_path, stage, log_every
):
    changes = {
        "algo": "rho1-wmtp",
        "steps": 6,
        "save_every": 1,
        "keep_checkpoints": 1,
        "log_every": log_every,
        "deepspeed_config": write_deepspeed(stage=stage),
    }
    trainer = make_trainer(**changes)
    poison(trainer, 2, weight_of_head_2)
    with pytest.raises(UserError) as error:
        trainer.train()
    # The third step: number 2 where steps are counted from 0, as a checkpoint does, and 3 as TensorBoard does.
    assert str(error.value).startswith(("step 2: the loss of head 2 on rank 0", "step 3: the loss of head 2 on rank 0"))
    assert "the last good checkpoint is " + str(tmp_path / "run/checkpoints/step_00000002") in str(error.value)
    assert "\n" not in str(error.value)
    folder = tmp_path / "run"
    assert [path.name for path in (folder / "checkpoints").glob("step*")] == ["step_00000002"]
    assert not (folder / "model").exists()
    assert not (folder / "evaluation.json").exists()
    resumed = make_trainer(resume=True, **changes)
    assert all(math.isfinite(figure) for figure in resumed.train().values())
    assert resumed.loop.run.step.weighting.seen[0][0].step == 2


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize(
    "config", [*({"stage": stage} for stage in range(4)), {"stage": 1, "bf16": {"enabled": True}}], ids=str
)
def test_a_gradient_that_is_not_finite_is_named_by_its_own_step(
    make_trainer, write_deepspeed, tmp_path, config, log_every
):
    changes = {"algo": "mtp-baseline", "steps": 6, "save_every": 2, "log_every": log_every}
    trainer = make_trainer(deepspeed_config=write_deepspeed(**config), **changes)
    compute = Step.loss

    def poisoned(step, micro_batch, normalizers):
        loss = compute(step, micro_batch, normalizers)
        if micro_batch.inputs.step == 2:
            loss.total.register_hook(lambda gradient: gradient * math.nan)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "loss", poisoned)
        with pytest.raises(UserError, match=r"^step 3: the gradient is not finite.*run/checkpoints/step_00000002; "):
            trainer.train()
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step*")] == ["step_00000002"]


def test_a_value_head_that_is_not_finite_is_named(make_trainer):
    trainer = make_trainer(algo="critic-wmtp", steps=4, critic={"value_warmup_steps": 10})
    poison(trainer, 1, lambda policy: policy.value_head.value.weight)
    with pytest.raises(
        UserError, match=r"step [12]: the loss of the value head on rank 0.*no checkpoint was saved before"
    ):
        trainer.train()


REFUSED_BEFORE_ANYTHING_IS_WRITTEN = [
    ("rho1-wmtp", {"reference": {"source": None}}, r"reference\.source"),
    ("labelled", {"corpus": [{"text": "no labels at all " * 20}]}, "noise"),
    ("critic-wmtp", {"corpus": [{"text": "no rewards at all " * 20}]}, "reward"),
]


@pytest.mark.parametrize(("algo", "changes", "problem"), REFUSED_BEFORE_ANYTHING_IS_WRITTEN)
def test_what_the_user_can_fix_is_refused_before_anything_is_written(make_trainer, tmp_path, algo, changes, problem):
    changes = dict(changes)
    if "corpus" in changes:
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in changes.pop("corpus")))
        changes["data"] = {"train": [str(corpus)]}
    with pytest.raises(UserError, match=problem):
        make_trainer(algo=algo, **changes).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("algo", {"algo": "random"}),
        ("seed", {"seed": 9}),
        ("data.packing", {"data": {"sequence_length": 16}}),
        ("model.horizon", {"model": {"horizon": 2}}),
        ("model.lora_alpha", {"model": {"lora_alpha": 8}}),
    ],
)
def test_a_run_resumes_only_as_itself(make_trainer, name, changes):
    make_trainer("run", algo="mtp-baseline", steps=2).train()
    with pytest.raises(
        UserError, match=f"step_00000002: saved with {name} .*start it alike, or choose another output_dir"
    ) as error:
        make_trainer("run", resume=True, **{"algo": "mtp-baseline", "steps": 4, **changes}).train()
    assert str(error.value).count("(this run: ") == 1


def test_a_run_resumes_only_with_the_same_scores(processes, make_trainer, make_settings, tiny_home, tmp_path):
    scores, settings = {}, make_settings()
    sources = load_sources(data_spec(settings, tokenizer_from_settings(settings)), processes)
    for computed_in in ("float32", "bfloat16"):
        for name, data in sources.items():
            folder = tmp_path / computed_in / name
            ScoringJob(
                data.prepared, lambda batch: batch.input_ids / 100, folder, "r", processes, 4, computed_in=computed_in
            ).run()
        scores[computed_in] = {"source": None, "scores": tmp_path / computed_in}
    make_trainer("run", steps=2, reference=scores["float32"]).train()
    with pytest.raises(UserError, match=r"saved with data\.computed_in float32 \(this run: bfloat16\); start it alike"):
        make_trainer("run", steps=3, resume=True, reference=scores["bfloat16"]).train()
    make_trainer("run", steps=3, resume=True, reference=scores["float32"]).train()


def test_a_checkpoint_of_an_earlier_format_is_refused_with_the_way_on(make_trainer, tmp_path):
    make_trainer(algo="mtp-baseline", steps=2).train()
    folder = tmp_path / "run/checkpoints/step_00000002"
    about = json.loads((folder / "run.json").read_text())
    del about["format"]
    (folder / "run.json").write_text(json.dumps(about))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["run.json"] = saving.write_manifest.__globals__["_describe_file"](folder / "run.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"step_00000002: an earlier version saved it.*start one from its model/ folder"
    ):
        make_trainer(algo="mtp-baseline", steps=4, resume=True).train()


def test_a_newer_transformers_resumes_with_a_word(make_trainer, monkeypatch, capfd):
    make_trainer("run", algo="mtp-baseline", steps=2).train()
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "99.0")  # what a configuration says of itself
    version = saving.version
    monkeypatch.setattr(saving, "version", lambda name: "99.0" if name == "transformers" else version(name))
    capfd.readouterr()
    resumed = make_trainer("run", algo="mtp-baseline", steps=3, resume=True)
    assert resumed.run.policy.config.trunk.to_dict()["transformers_version"] == "99.0"
    resumed.train()
    assert f"was saved by other versions: transformers {transformers.__version__} → 99.0\n" in capfd.readouterr().err


def test_other_settings_are_told(make_trainer, tmp_path, capfd):
    make_trainer("run", algo="random", steps=2).train()
    changes = {"selection": {"k_percent": 0.25}, "normalize_by": "selected"}
    capfd.readouterr()
    make_trainer("run", algo="random", steps=2, resume=True).train()
    assert "warning" not in capfd.readouterr().err
    make_trainer("run", algo="random", steps=3, resume=True, **changes).train()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    told = "normalize_by valid → selected, selection.k_percent 0.6 → 0.25, steps 2 → 3"
    assert line.endswith(f"run/checkpoints/step_00000002 was saved with other settings: {told}")


def test_another_learning_rate_counts_from_the_resumption_on(make_trainer, tmp_path):
    changes = {"algo": "mtp-baseline", "data": {"evaluate": {}}}
    rates = [{"optimizer": {"schedule": "constant", "learning_rate": rate}} for rate in (1e-3, 1e-5)]
    make_trainer("run", steps=2, **changes, **rates[0]).train()
    resumed = make_trainer("run", steps=4, resume=True, **changes, **rates[1])
    resumed.train()
    assert resumed.loop.learning_rate == pytest.approx(1e-5)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_other_decays_count_from_the_resumption_on(make_trainer, write_deepspeed, stage):
    changes = {"algo": "mtp-baseline", "data": {"evaluate": {}}, "deepspeed_config": write_deepspeed(stage=stage)}
    make_trainer("run", steps=2, optimizer={"weight_decay": 0.1, "betas": (0.9, 0.95)}, **changes).train()
    now = {"weight_decay": 0.25, "betas": (0.8, 0.99)}
    resumed = make_trainer("run", steps=3, resume=True, optimizer=now, **changes)
    resumed.train()
    groups = resumed.loop.engine._engine.lr_scheduler.optimizer.param_groups
    assert [(group["weight_decay"], tuple(group["betas"])) for group in groups] == [
        (0.25, (0.8, 0.99)),
        (0.0, (0.8, 0.99)),
    ]


def test_another_batch_size_goes_on_in_the_data_where_it_stopped(make_trainer, write_deepspeed):
    changes = {"algo": "mtp-baseline", "data": {"evaluate": {}}}
    make_trainer("run", steps=2, deepspeed_config=write_deepspeed(train_batch_size=4), **changes).train()
    resumed = make_trainer("run", steps=3, resume=True, deepspeed_config=write_deepspeed(train_batch_size=2), **changes)
    resumed.train()
    assert resumed.loop.batches.state_dict() == {"consumed_rows": 10}


def test_a_folder_that_a_person_kept_is_no_checkpoint_of_the_run(make_trainer, tmp_path):
    trainer = make_trainer("run", algo="mtp-baseline", steps=2, data={"evaluate": {}})
    kept = tmp_path / "run" / "checkpoints" / "step_00000001_keep"
    kept.mkdir(parents=True)
    trainer.train()
    assert kept.is_dir()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_with_the_same_end(make_trainer, tmp_path, capfd):
    changes = {"algo": "rho1-wmtp", "steps": 6, "save_every": 2}
    metrics = make_trainer("whole", **changes).train()
    cut_off(tmp_path / "whole", tmp_path / "cut", step=6)
    damaged = tmp_path / "cut/checkpoints/step_00000006"
    (damaged / "rng_00000.safetensors").unlink()
    capfd.readouterr()
    assert make_trainer("cut", resume=True, **changes).train() == metrics
    assert f"warning: checkpoint {damaged} is damaged: rng_00000.safetensors is missing" in capfd.readouterr().err
    left = sorted(path.name for path in damaged.parent.iterdir())
    assert left == ["step_00000004", "step_00000006", "step_00000006.damaged"]


def test_the_checkpoint_of_the_lowest_held_out_loss_stays(make_trainer, tmp_path):
    trainer = make_trainer(
        algo="mtp-baseline",
        steps=5,
        save_every=1,
        keep_checkpoints=1,
        keep_best="held_out/ce/head_1",
        optimizer={"learning_rate": 0.1, "schedule": "constant"},
    )
    losses, evaluate = {}, trainer.loop.evaluate

    def rising():
        metrics = evaluate()
        metrics["held_out/ce/head_1"] = losses[trainer.loop.number] = abs(trainer.loop.number - 2.2)
        return metrics

    trainer.loop.evaluate = rising
    trainer.train()
    assert min(losses, key=losses.get) == 2
    left = sorted((tmp_path / "run/checkpoints").iterdir())
    assert [path.name for path in left] == ["step_00000002", "step_00000005"]
    assert json.loads((left[0] / "run.json").read_text())["metrics"]["held_out/ce/head_1"] == losses[2]


def test_a_best_by_something_unknown_is_refused_before_anything_is_written(make_trainer, tmp_path):
    with pytest.raises(UserError, match=r"keep_best is 'held_out/head_0'; choose one of held_out/ce/head_0, held_out"):
        make_trainer(algo="mtp-baseline", keep_best="held_out/head_0").train()
    with pytest.raises(UserError, match=r"keep_best is 'held_out/ce/head_0'; data\.evaluate names no held-out set"):
        make_trainer(algo="mtp-baseline", keep_best="held_out/ce/head_0", data={"evaluate": {}}).train()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_holds_the_settings(make_trainer, tmp_path):
    trainer = make_trainer(algo="mtp-baseline", steps=1)
    trainer.train()
    about = json.loads((tmp_path / "run/checkpoints/step_00000001/run.json").read_text())
    assert about["settings"] == trainer.run.settings.model_dump(mode="json")
    assert about["batches"] == {"consumed_rows": 4}


def test_a_disk_that_fills_up_between_checkpoints_ends_the_run_in_one_line(
    processes, make_trainer, tmp_path, small_disk
):
    small_disk(tmp_path / "disk", "size=2m")
    trainer = make_trainer("disk/run", algo="mtp-baseline", steps=200, save_every=1, log_every=1)
    train_step = trainer.loop.train_step

    def filling():
        train_step()
        if trainer.loop.number == 2:
            room = os.statvfs(tmp_path / "disk")
            (tmp_path / "disk" / "else").write_bytes(bytes(room.f_bavail * room.f_frsize))

    trainer.loop.train_step = filling
    with pytest.raises(UserError, match=r"no space left on device; make room or fix the folder, then --resume$"):
        trainer.train()
    (tmp_path / "disk" / "else").unlink()
    assert newest_whole_checkpoint(tmp_path / "disk/run/checkpoints", processes).name == "step_00000001"
