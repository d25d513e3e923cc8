"""What a training run hands to the places that `monitor` names, and to the console."""

import pytest

from wmtp_train import loop
from wmtp_train.metrics.monitors import KINDS
from wmtp_train.metrics.monitors.base import Monitor
from wmtp_train.ranks.preemption import Interrupted


class Remembering(Monitor):
    """Remembers every call of every one that was opened."""

    calls: list

    def __init__(self, settings, first_step):
        self.calls.append(("open", first_step))

    def write(self, metrics, step):
        self.calls.append(("write", step, metrics))

    def close(self, finished):
        self.calls.append(("close", finished))


@pytest.fixture
def calls(monkeypatch):
    Remembering.calls = []
    monkeypatch.setitem(KINDS, "jsonl", Remembering)
    return Remembering.calls


def test_a_run_writes_each_log_and_evaluation_and_closes(make_trainer, calls):
    metrics = make_trainer(algo="mtp-baseline", steps=4, log_every=2, evaluate_every=4, monitor=["jsonl"]).train()
    assert [call[:2] for call in calls] == [
        ("open", 0), ("write", 0), ("write", 2), ("write", 4), ("write", 4), ("close", True),
    ]  # fmt: skip
    assert calls[-2][2] == {f"evaluation/{name}": value for name, value in metrics.items()}


def test_a_run_that_is_stopped_is_closed_as_such_and_opened_where_it_goes_on(make_trainer, calls, monkeypatch):
    def stop(mesh):
        if len([call for call in calls if call[0] == "write"]) == 2:
            raise Interrupted("stopped")

    changes = {"algo": "mtp-baseline", "steps": 4, "monitor": ["jsonl"], "data": {"evaluate": {}}}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "raise_if_preempted", stop)
        with pytest.raises(Interrupted, match="after 2 of 4 steps"):
            make_trainer(**changes).train()
    assert calls[-1] == ("close", False)
    calls.clear()
    make_trainer(resume=True, **changes).train()
    assert calls[0] == ("open", 3)
    assert [call[1] for call in calls if call[0] == "write" and "train/weighted_loss" in call[2]] == [3, 4]
    assert calls[-1] == ("close", True)


def test_the_console_shows_the_loss_of_head_0_whatever_is_weighed(make_trainer, calls, monkeypatch):
    trainer, shown = make_trainer(algo="rho1-wmtp", steps=2, monitor=["jsonl"], data={"evaluate": {}}), []
    log = trainer.loop.log
    monkeypatch.setattr(trainer.loop, "log", lambda: shown.append(log()) or shown[-1])
    trainer.train()
    written = [call[2] for call in calls if call[0] == "write" and "ce/head_0" in call[2]]
    assert [line["head 0 loss"] for line in shown] == [f"{metrics['ce/head_0']:.3f}" for metrics in written]
    assert all(metrics["ce/head_0"] > metrics["train/weighted_loss"] for metrics in written)
