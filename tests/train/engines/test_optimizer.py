import copy

import pytest
import torch
from torch import nn

from wmtp_train.engines.optimizer import apply_settings, build_optimizer
from wmtp_train.settings.sections import OptimizerSettings

SETTINGS = OptimizerSettings(learning_rate=0.1, weight_decay=0.5)


def steps(model, optimizer, count):
    for step in range(count):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_fused_form_takes_the_same_steps():
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        adamw, _ = build_optimizer(model, SETTINGS, 5, fused)
        assert [bool(group["fused"]) for group in adamw.param_groups] == [fused, fused]
        steps(model, adamw, 5)
        found.append(model.state_dict())
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_does_not_say_which_form_goes_on(fused):
    model = nn.Linear(4, 3)
    before, _ = build_optimizer(model, SETTINGS, 5, not fused)
    steps(model, before, 2)
    adamw, schedule = build_optimizer(model, SETTINGS, 5, fused)
    adamw.load_state_dict(copy.deepcopy(before.state_dict()))
    apply_settings(schedule, SETTINGS)
    assert [bool(group["fused"]) for group in adamw.param_groups] == [fused, fused]
    steps(model, adamw, 1)
    assert [int(state["step"]) for state in adamw.state.values()] == [3, 3]


@pytest.mark.parametrize(("fused", "place"), [(False, "cpu"), (True, "meta")])
def test_steps_are_counted_where_the_form_needs_it(fused, place):
    parameter = nn.Parameter(torch.zeros(2, 2, device="meta"))  # stands for one on an accelerator
    adamw, schedule = build_optimizer(nn.Linear(2, 2), SETTINGS, 5, fused)
    adamw.state[parameter]["step"] = torch.tensor(4.0)
    apply_settings(schedule, SETTINGS)
    assert adamw.state[parameter]["step"].device.type == place
