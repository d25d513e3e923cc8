"""Between log intervals the host never waits for the device."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wmtp_core.losses.fused
import wmtp_core.losses.logits_chunk

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "repeat_interleave"}


def our_caller() -> str | None:
    """File and line of the innermost frame that is not torch's, if it is one of the packages'."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if "/torch/" not in path and path != __file__:
            return f"{path}:{frame.f_lineno}" if "/wmtp_" in path else None
        frame = frame.f_back
    return None


class Waits(TorchDispatchMode):
    """Notes every place in the packages where a tensor's values are asked for on the host."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.places, self.watching, self.counted_by_the_loss = [], False, 0
        for name in ("tolist", "numpy", "cpu"):  # on a CPU these pass below the dispatcher
            monkeypatch.setattr(torch.Tensor, name, self.noting(getattr(torch.Tensor, name)))

    def noting(self, method):
        def noted(*args, **kwargs):
            self.note(method.__name__)
            return method(*args, **kwargs)

        return noted

    def note(self, operation):
        if not self.watching or not (place := our_caller()):
            return
        # In the backward, skipping rows has to count them.
        if operation == "nonzero" and "/losses/fused.py" in place:
            self.counted_by_the_loss += 1
        elif operation != "nonzero" or "/sparse_grad_linear.py" not in place:
            self.places.append(f"{place}: {operation}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.note(name)
        elif name.startswith("index") and any(
            index.dtype == torch.bool for index in tree_leaves(args[1]) if isinstance(index, torch.Tensor)
        ):
            self.note("mask")
        return func(*args, **(kwargs or {}))

    def watch(self, function):
        def watched(*args):
            self.watching = True
            with self:
                result = function(*args)
            self.watching = False
            return result

        return watched


@pytest.mark.parametrize(("normalize_by", "scope"), [("valid", "batch"), ("selected", "sequence")])
@pytest.mark.parametrize("algo", ["rho1-wmtp", "critic-wmtp", "mtp-baseline", "random", "softmax-excess"])
def test_a_step_never_waits_for_the_device(make_trainer, monkeypatch, algo, normalize_by, scope):
    trainer = make_trainer(
        algo=algo,
        steps=3,
        log_every=100,
        normalize_by=normalize_by,
        selection={"scope": scope},
        critic={"value_warmup_steps": 1, "transform": "exp" if scope == "batch" else "softmax"},
        data={"evaluate": {}},
    )
    waits = Waits(monkeypatch)
    trainer.loop.train_step = waits.watch(trainer.loop.train_step)
    for module in (wmtp_core.losses.fused, wmtp_core.losses.logits_chunk):
        monkeypatch.setattr(module, "on_accelerator", lambda tensor: True)
    with torch.compiler.set_stance("force_eager"):
        trainer.train()
    assert len(trainer.loop.run.step.weighting.seen) == 3
    assert waits.places == []
    assert waits.counted_by_the_loss == 2 * len(trainer.loop.run.step.weighting.seen)


def test_the_watch_sees_what_waits(make_trainer, monkeypatch):
    trainer = make_trainer(algo="rho1-wmtp", steps=1)
    waits = Waits(monkeypatch)
    trainer.loop.log = waits.watch(trainer.loop.log)
    trainer.loop.evaluate = waits.watch(trainer.loop.evaluate)
    trainer.train()
    for file in ("accumulator.py", "held_out.py"):
        assert any(file in place for place in waits.places)
