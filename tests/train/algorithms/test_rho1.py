import math

import pytest
import torch

from wmtp_core import Rho1Weighting, UniformWarmup


def test_it_wires_the_settings_selection_and_a_live_reference(processes, make_trainer):
    selection = {"k_percent": 0.3, "scope": "sequence", "warmup_steps": 7, "from_head": 0}
    trainer = make_trainer(algo="rho1-wmtp", selection=selection)
    rule = Rho1Weighting(0.3, "sequence", group=processes.data_parallel, from_head=0)
    assert trainer.loop.run.step.weighting.weighting == UniformWarmup(rule, 7)
    assert trainer.loop.run.step.reference is not None
    assert trainer.loop.run.step.value_objective is None


@pytest.mark.parametrize("k_percent", [0.1, 0.6, 1.0])
def test_head_0_keeps_everything_and_later_heads_exactly_their_share(make_trainer, k_percent):
    trainer = make_trainer(algo="rho1-wmtp", steps=2, selection={"k_percent": k_percent})
    trainer.train()
    for signals, weights in trainer.loop.run.step.weighting.seen:
        assert torch.equal(weights[..., 0], signals.valid[..., 0].float())
        for h in (1, 2):
            n = int(signals.valid[..., h].sum())
            assert int(weights[..., h].sum()) == 1 + math.floor(k_percent * (n - 1) + 1e-9)


def test_one_head_has_nothing_to_select_unless_head_0_selects(make_trainer):
    for from_head in (1, 0):
        changes = {"model": {"horizon": 1}, "selection": {"from_head": from_head}}
        trainer = make_trainer(f"from_{from_head}", algo="rho1-wmtp", steps=1, **changes)
        trainer.train()
        signals, weights = trainer.loop.run.step.weighting.seen[0]
        assert torch.equal(weights, signals.valid.float()) is (from_head == 1)


def test_selection_begins_after_its_warm_up(make_trainer):
    trainer = make_trainer(algo="rho1-wmtp", steps=4, selection={"warmup_steps": 2}, data={"evaluate": {}})
    trainer.train()
    assert [signals.step for signals, _ in trainer.loop.run.step.weighting.seen] == [0, 1, 2, 3]
    for signals, weights in trainer.loop.run.step.weighting.seen:
        assert torch.equal(weights, signals.valid.float()) is (signals.step < 2)
