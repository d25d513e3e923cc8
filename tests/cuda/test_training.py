"""Training on the device: ZeRO's stages against each other and the CPU, and a resumed run against a whole one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.training import Alone, LocalEngine
from wmtp_core import Rho1Weighting
from wmtp_train.algorithms import trainer_class
from wmtp_train.build_models import build_policy_from_settings, load_reference
from wmtp_train.data.loading import tokenizer_from_settings
from wmtp_train.engines.optimizer import build_optimizer
from wmtp_train.settings.sections import ModelSettings
from wmtp_train.step import Step

pytestmark = pytest.mark.cuda
STEPS = 3
# Adam's first steps are ±1 wherever a gradient is a little above rounding, so updates differ by more than gradients.
CLOSE = 3e-2


@pytest.fixture
def settings_of(make_settings, write_deepspeed, wide_llama):
    def settings(output, stage, **changes):
        config = write_deepspeed(f"{output}.json", stage=stage, **changes.pop("deepspeed", {}))
        changes = {"algo": "rho1-wmtp", "data": {"evaluate": {}}, "optimizer": {"learning_rate": 1e-3}} | changes
        plain = {"attention": "sdpa"} if "attention" in ModelSettings.model_fields else {}
        return make_settings(
            output, model={"config": wide_llama, **plain}, steps=STEPS, deepspeed_config=config, **changes
        )

    return settings


def trained_by(settings, mesh):
    """How far every weight went in some steps of the trainer's loop."""
    trainer = trainer_class(settings.algo)(settings, mesh)
    loop, run = trainer.loop, trainer.run
    start = loop.engine.full_state_dict()
    loop.batches = run.train.training_batches(mesh, run.micro_batch, settings.seed, {})
    loop.interval_steps = 0
    for _ in range(STEPS):
        loop.train_step()
    end = loop.engine.full_state_dict()
    return {name: end[name] - start[name] for name in start}


def trained_on_the_cpu(settings, mesh):
    """The same by the step itself and torch's AdamW, without DeepSpeed."""
    tokenizer = tokenizer_from_settings(settings)
    policy = build_policy_from_settings(settings, tokenizer, value_head=False)
    start = {name: p.detach().clone() for name, p in policy.named_parameters()}
    adamw, schedule = build_optimizer(policy, settings.optimizer, settings.steps, fused=False)
    reference = load_reference(settings, tokenizer)
    step = Step(policy, Rho1Weighting(settings.selection.k_percent), 3, Alone(torch.device("cpu")), reference)
    batches = trainer_class(settings.algo)(settings, mesh).run.train.training_batches(mesh, 4, settings.seed, {})
    for number in range(STEPS):
        step.train(LocalEngine(policy, adamw, lambda part: None), [next(batches)], number)
        schedule.step()
    return {name: p.detach() - start[name] for name, p in policy.named_parameters()}


def test_zero_stages_train_alike_and_as_on_the_cpu(processes, settings_of, relative_error):
    expected = trained_on_the_cpu(settings_of("on_cpu", 1), processes)
    updates = {stage: trained_by(settings_of(f"stage_{stage}", stage), processes) for stage in range(4)}
    for stage, update in updates.items():
        found = [update[name] for name in expected]
        assert relative_error(found, list(expected.values())) <= CLOSE, f"stage {stage} and the CPU"
        assert relative_error(found, [updates[1][name] for name in expected]) <= CLOSE, f"stages {stage} and 1"


def test_bf16_with_float32_sums_goes_the_same_way(processes, settings_of, relative_error):
    low = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    full = trained_by(settings_of("full", 1), processes)
    updates = {s: trained_by(settings_of(f"low_{s}", s, deepspeed=low), processes) for s in (1, 2, 3)}
    for stage, update in updates.items():
        assert relative_error(list(update.values()), list(full.values())) <= 0.2, stage
        assert relative_error(list(update.values()), list(updates[1].values())) <= 0.05, stage


@pytest.mark.parametrize(
    ("algo", "stage"), [*(("rho1-wmtp", stage) for stage in range(4)), ("critic-wmtp", 2), ("random", 1)]
)
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(processes, settings_of, tmp_path, algo, stage):
    changes = {"algo": algo, "save_every": 2, "critic": {"value_warmup_steps": 1}}
    whole, halves = settings_of("whole", stage, **changes), settings_of("halves", stage, resume=True, **changes)
    metrics = trainer_class(algo)(whole, processes).train()
    # As if a kill had ended it after its first checkpoint.
    left_later = shutil.ignore_patterns("model", "evaluation.json", "passages.json", f"step_*{STEPS}")
    shutil.copytree(tmp_path / "whole", tmp_path / "halves", ignore=left_later)
    assert len(list((tmp_path / "halves" / "checkpoints").glob("step_*"))) == 1
    resumed = trainer_class(algo)(halves, processes)
    assert resumed.train() == metrics
    one, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "halves"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
