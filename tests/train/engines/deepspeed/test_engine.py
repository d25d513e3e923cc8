import copy
import math

import pytest
import torch
from torch import nn

from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.settings.sections import OptimizerSettings


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.matrix = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, x):
        return self.matrix(self.norm(x)).square().mean()


def engine_of(mesh, model, settings, steps, stage=1):
    batch = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    batch |= {"gradient_clipping": 0.0}  # the default of DeepSpeed is to clip at 1
    return ZeroEngine(model, {**batch, "zero_optimization": {"stage": stage}}, settings, steps, mesh)


def rates(mesh, settings, steps):
    """The learning rate of every step, from the engine itself."""
    engine = engine_of(mesh, Small(), settings, steps)
    used = []
    for _ in range(steps):
        used.append(engine.learning_rate)
        engine.backward_and_step(engine(torch.ones(2, 4)))
    return used


def test_warm_up_is_linear_and_the_cosine_ends_at_its_fraction(processes):
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
    expected = [0.5, 1.0, 1.5, 2.0]
    expected += [2.0 * (0.25 + 0.75 * (1 + math.cos(math.pi * n / 8)) / 2) for n in range(8)]
    assert rates(processes, settings, 12) == pytest.approx(expected)


def test_the_constant_schedule_stays_at_its_peak(processes):
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=2, schedule="constant")
    assert rates(processes, settings, 5) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("warmup_steps", [3, 5])
def test_a_run_that_is_all_warm_up_never_exceeds_it(processes, warmup_steps):
    settings = OptimizerSettings(learning_rate=1.0, warmup_steps=warmup_steps)
    assert rates(processes, settings, 3) == pytest.approx([(n + 1) / warmup_steps for n in range(3)])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_are_those_of_plain_adamw_without_decay_of_vectors(processes, stage):
    torch.manual_seed(0)
    model = Small()
    plain = copy.deepcopy(model)
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.5, schedule="constant", betas=(0.8, 0.9))
    engine = engine_of(processes, model, settings, 4, stage)
    vectors = [plain.norm.weight, plain.norm.bias, plain.matrix.bias]
    groups = [{"params": [plain.matrix.weight], "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    for step in range(4):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        engine.backward_and_step(engine(x))
        plain(x).backward()
        adamw.step()
        adamw.zero_grad()
    for name, parameter in engine.policy.named_parameters():
        expected = plain.get_parameter(name)
        found = parameter.detach() if stage < 3 else parameter.ds_tensor.view(parameter.ds_shape)
        torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)
    assert not torch.equal(plain.matrix.weight, Small().matrix.weight)
