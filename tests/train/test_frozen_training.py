"""Runs in which a part of the policy does not learn: what stays, what moves, and that they resume like others."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from wmtp_core import UserError
from wmtp_models import load_causal_lm, load_policy

STEPS = {"algo": "mtp-baseline", "steps": 4, "save_every": 2}


def weights(tmp_path, run):
    return load_file(tmp_path / run / "model" / "model.safetensors")


def train_and_resume(make_trainer, tmp_path, **changes):
    """Trains `whole` without a break and `halves` with one after 2 steps."""
    make_trainer("whole", **STEPS, **changes).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "model")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_00000004")
    make_trainer("halves", resume=True, **STEPS, **changes).train()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "model",
    [
        {"train": "heads"},
        {"train": "heads", "head_kind": "mlp"},
        {"train": "heads", "head_kind": "linear"},  # where no vector learns
        {"train": "lora", "lora_rank": 2},
        {"train": "heads", "head_kind": "sequential"},
        {"train": "lora", "lora_rank": 2, "head_kind": "sequential", "shared_module": False},
    ],
)
def test_half_a_run_and_its_resumption_are_a_whole_run_bit_for_bit(
    make_trainer, write_deepspeed, tmp_path, tiny_home, model, stage
):
    source = {"source": str(tiny_home / "reference"), "config": None}
    train_and_resume(make_trainer, tmp_path, model={**model, **source}, deepspeed_config=write_deepspeed(stage=stage))
    whole, halves = weights(tmp_path, "whole"), weights(tmp_path, "halves")
    assert whole.keys() == halves.keys()
    assert [name for name in whole if not torch.equal(whole[name], halves[name])] == []
    kind, shared = model.get("head_kind", "layer"), model.get("shared_module", True)
    start = load_policy(tiny_home / "reference", 3, head_kind=kind, shared_module=shared).state_dict()
    moved = {name for name in whole if not torch.equal(whole[name], start[name])}
    later = {name for name in whole if name.startswith("heads.")}
    if model["train"] == "heads":
        assert moved == later
    else:
        trunk_layers = [name for name in whole if name.startswith("causal_lm.model.layers.")]
        head_0 = {name for name in trunk_layers if ".layers.1." in name and kind == "layer"}
        trunk = {name for name in trunk_layers if name.endswith("proj.weight")}
        assert moved == later | head_0 | trunk


def test_a_plain_model_comes_out_as_it_went_in(make_trainer, tmp_path, tiny_home):
    source = {"source": str(tiny_home / "reference"), "config": None, "train": "heads"}
    make_trainer(algo="critic-wmtp", steps=2, model=source).train()
    before = AutoModelForCausalLM.from_pretrained(tiny_home / "reference").state_dict()
    after = load_causal_lm(tmp_path / "run" / "model").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = load_policy(tmp_path / "run" / "model", 3, value_head=True)
    assert trained.value_head.value.weight.any(), "the value head learned"


def test_one_head_alone_cannot_learn_beside_itself(make_trainer):
    with pytest.raises(UserError, match=r"model.train is heads, and horizon 1 has none"):
        make_trainer(algo="mtp-baseline", model={"horizon": 1, "train": "heads"})


def test_heads_of_another_kind_than_the_models_are_refused(make_trainer, tmp_path):
    make_trainer(algo="mtp-baseline", steps=1, model={"head_kind": "linear"}).train()
    source = {"source": str(tmp_path / "run" / "model"), "config": None}
    with pytest.raises(
        UserError, match="has heads of the kind linear, but head_kind is layer: set head_kind to linear"
    ):
        make_trainer("next", algo="mtp-baseline", model=source)


def test_a_run_is_resumed_with_what_learned_before(make_trainer):
    make_trainer(algo="mtp-baseline", steps=1, model={"train": "heads"}).train()
    with pytest.raises(UserError, match=r"saved with model.train heads \(this run: lora\); start"):
        make_trainer(algo="mtp-baseline", steps=2, resume=True, model={"train": "lora"}).train()
