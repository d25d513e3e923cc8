"""Runs with what makes a trunk faster or smaller: they reach what runs without it reach."""

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters
from tqdm import tqdm

from wmtp_core import UserError
from wmtp_models import flop_per_token

pytestmark = pytest.mark.slow
COMPILED = torch.compile


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [point.value for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("train", ["all", "heads", "lora"])
@pytest.mark.parametrize("head_kind", ["layer", "sequential"])
@pytest.mark.parametrize("stage", [1, 3])
def test_checkpointed_runs_are_the_same_to_the_bit(make_trainer, write_deepspeed, tmp_path, stage, head_kind, train):
    if stage == 3:  # gathered anew for every layer, in the backward's forward too
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
        config = write_deepspeed(zero_optimization=zero)
    else:
        config = write_deepspeed(stage=stage)
    for checkpointed in (False, True):
        model = {"head_kind": head_kind, "train": train, "gradient_checkpointing": checkpointed}
        make_trainer(str(checkpointed), algo="rho1-wmtp", model=model, deepspeed_config=config).train()
    plain, again = weights(tmp_path / "False"), weights(tmp_path / "True")
    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_compiled_runs_learn_the_same(make_trainer, write_deepspeed, tmp_path, monkeypatch, stage, checkpointed):
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", lambda forward, **how: COMPILED(forward, backend="aot_eager", **how))
    config = write_deepspeed(stage=stage, train_batch_size=4, gradient_accumulation_steps=2)
    for compiled in (False, True):
        model = {"compile": compiled, "gradient_checkpointing": checkpointed}
        make_trainer(str(compiled), algo="rho1-wmtp", model=model, deepspeed_config=config).train()
    assert counters["stats"]["unique_graphs"] == 2  # of the trunk's layers and the heads', whatever the step
    assert not counters["graph_break"]
    plain, compiled = scalars(tmp_path / "False"), scalars(tmp_path / "True")
    assert compiled["train/weighted_loss"] == pytest.approx(plain["train/weighted_loss"], rel=1e-4)
    assert weights(tmp_path / "True").keys() == weights(tmp_path / "False").keys()


def test_what_cannot_be_compiled_is_refused_before_anything_is_written(make_trainer, write_deepspeed, tmp_path):
    with pytest.raises(UserError, match=r"^model\.compile: at ZeRO stage 3 .*: set it to false, or take stage 1 or 2$"):
        make_trainer(model={"compile": True}, deepspeed_config=write_deepspeed(stage=3))
    with pytest.raises(UserError, match=r"^model\.compile and model\.liger are both true; .*: keep one$"):
        make_trainer(model={"compile": True, "liger": True})
    with pytest.raises(UserError, match=r"^model\.liger.*: set model\.liger to false|, or set model\.liger to false$"):
        make_trainer(model={"liger": True})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar is given to show, log by log."""
    figures = []
    monkeypatch.setattr(tqdm, "set_postfix", lambda bar, given: figures.append(given))
    return figures


def test_the_log_tells_the_share_of_the_peak_that_is_used(make_trainer, tmp_path, shown):
    trainer = make_trainer(algo="mtp-baseline", steps=2, peak_tflops=1e-3, data={"evaluate": {}})
    trainer.train()
    logged = scalars(tmp_path / "run")
    expected = [flop_per_token(trainer.run.policy, 32) * rate / 1e9 for rate in logged["train/tokens_per_second"]]
    assert logged["train/mfu"] == pytest.approx(expected, rel=1e-5)
    assert [figures["mfu"] for figures in shown] == [f"{share:.1%}" for share in logged["train/mfu"]]


def test_without_a_peak_there_is_no_such_share(make_trainer, tmp_path, shown):
    make_trainer(algo="mtp-baseline", steps=1, data={"evaluate": {}}).train()
    assert "train/mfu" not in scalars(tmp_path / "run")
    assert [list(figures) for figures in shown] == [["head 0 loss", "tokens/s"]]
