"""The norm and the clipping that stay on the device are DeepSpeed's own, to the bit."""

import copy

import deepspeed
import pytest
import torch
from torch import nn

from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.engines.deepspeed.gradient_norm import norm_stays_on_device
from wmtp_train.engines.optimizer import build_optimizer
from wmtp_train.settings.sections import OptimizerSettings

BATCH = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
SETTINGS = OptimizerSettings(learning_rate=0.1, schedule="constant")
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.matrix = nn.LayerNorm(40), nn.Linear(40, 30)

    def forward(self, x):
        return self.matrix(self.norm(x.to(self.matrix.weight.dtype))).float().square().mean()


def rows(step):
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("clipping", [{}, {"gradient_clipping": 0.0}, {"gradient_clipping": 0.05}])
@pytest.mark.parametrize(("stage", "precision"), [(0, {}), (1, {}), (2, {}), (2, BF16)])
def test_they_are_those_of_deepspeed(processes, stage, precision, clipping):
    torch.manual_seed(0)
    model = Small()
    theirs = copy.deepcopy(model)
    config = {**BATCH, **clipping, **precision, "zero_optimization": {"stage": stage}}
    assert norm_stays_on_device(config)
    engine = ZeroEngine(model, config, SETTINGS, 9, processes)
    adamw, _ = build_optimizer(theirs, SETTINGS, 9, fused=False)
    plain, *_ = deepspeed.initialize(model=theirs, optimizer=adamw, config=config, dist_init_required=False)
    for step in range(6):
        found = engine.backward_and_step(engine(rows(step)))
        plain.backward(plain(rows(step)))
        plain.step()
        if step % 2:
            assert found > clipping.get("gradient_clipping", 0)  # so that something is clipped
        if step % 2 and stage:
            assert found.equal(plain.get_global_grad_norm())
    for mine, its in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert not torch.equal(mine, Small().matrix.bias)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_checkpoint_whose_clipping_was_deepspeeds_goes_on(processes, monkeypatch, tmp_path, stage):
    config = {**BATCH, "gradient_clipping": 0.05, "zero_optimization": {"stage": stage}}

    def train(engine, steps):
        for step in steps:
            engine.backward_and_step(engine(rows(step)))

    torch.manual_seed(0)
    model = Small()
    loaded = ZeroEngine(copy.deepcopy(model), config, SETTINGS, 9, processes)
    monkeypatch.setattr("wmtp_train.engines.deepspeed.engine.norm_stays_on_device", lambda config: False)
    saved = ZeroEngine(model, config, SETTINGS, 9, processes)
    train(saved, range(2))
    (tmp_path / "two").mkdir()
    assert saved.save(tmp_path / "two") == []
    loaded.load(tmp_path / "two", 1, SETTINGS)
    for engine in (saved, loaded):
        train(engine, range(2, 6))
    for its, mine in zip(saved.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(its, mine)


def test_it_is_left_to_deepspeed_where_that_needs_it():
    def config(stage, **more):
        return {"zero_optimization": {"stage": stage}, **more}

    assert not norm_stays_on_device(config(3))
    assert not norm_stays_on_device(config(1, **BF16))
    assert not norm_stays_on_device(config(2, fp16={"enabled": True}))
    assert not norm_stays_on_device(config(2, torch_autocast={"enabled": True, "dtype": "float16"}))
    assert not norm_stays_on_device({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    assert norm_stays_on_device(config(2, torch_autocast={"enabled": True, "dtype": "bfloat16"}))
    assert norm_stays_on_device({})
    assert norm_stays_on_device({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}})
