"""Against what wandb leaves on the disk offline: its log of protocol buffers, read here by its own format."""

import json
import struct
import sys

import pytest

from wmtp_core import UserError
from wmtp_train.metrics.monitors.wandb import WeightsAndBiases

wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install -e 'packages/wmtp-train[wandb]'")
BLOCK = 32768


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def records(path):
    """The records of a .wandb file: LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def read(folder):
    """Of each start, in order: the run's id, its settings, and the figures of every call."""
    starts = []
    for path in sorted((folder / "run/wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        found = list(records(path))
        (run,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
        history = [
            {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.WhichOneof("record_type") == "history"
        ]
        ends = [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"]
        figures = [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]
        starts.append((run, figures, ends))
    return starts


def test_settings_figures_and_the_end_are_in_the_run(make_settings, tmp_path):
    settings = make_settings(steps=7)
    monitor = WeightsAndBiases(settings, 0)
    monitor.write({"ce/head_0": 2.5, "train/weighted_loss": 3.0}, 1)
    monitor.write({"evaluation/held_out/ce/head_0": 2.0}, 1)
    monitor.write_final({"held_out/ce/head_0": 1.5}, 7)
    monitor.close(finished=True)
    ((run, figures, ends),) = read(tmp_path)
    assert run.run_id == (tmp_path / "run/wandb/run_id").read_text().strip()
    assert (run.project, run.display_name) == ("wmtp", str(tmp_path / "run"))
    told = {update.key or update.nested_key[0]: json.loads(update.value_json) for update in run.config.update}
    assert {name: told[name] for name in ("steps", "data")} == {
        name: settings.model_dump(mode="json")[name] for name in ("steps", "data")
    }
    assert figures == [
        {"step": 1, "ce/head_0": 2.5, "train/weighted_loss": 3.0},
        {"step": 1, "evaluation/held_out/ce/head_0": 2.0},
        {"step": 7, "final/held_out/ce/head_0": 1.5},
    ]
    assert ends == [0]


def test_a_resumed_run_goes_on_in_the_same_one_and_a_new_one_does_not(make_settings, tmp_path):
    settings = make_settings()
    for first_step, finished in ((0, False), (3, True), (0, True)):
        monitor = WeightsAndBiases(settings, first_step)
        monitor.write({"ce/head_0": 1.0}, first_step)
        monitor.close(finished)
    (one, first, ends), (two, second, _), (three, _, _) = read(tmp_path)
    assert one.run_id == two.run_id != three.run_id
    assert (first, second) == ([{"step": 0, "ce/head_0": 1.0}], [{"step": 3, "ce/head_0": 1.0}])
    assert ends == [1]


def test_a_run_without_an_account_is_refused_in_one_line(make_settings, monkeypatch):
    def init(**options):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError, match=r"^monitor: wandb: No API key .*WANDB_MODE=offline") as caught:
        WeightsAndBiases(make_settings(), 0)
    assert "\n" not in str(caught.value)
