"""Against a store in a file, read through another client."""

import json
import math

import pytest

from wmtp_core import UserError
from wmtp_train.metrics.monitors.mlflow import MLflow

install = "pip install -e 'packages/wmtp-train[mlflow]'"
for library in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(library, reason=f"{library} is not installed: {install}")


@pytest.fixture
def store(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return address


@pytest.fixture
def read(store, tmp_path):
    from mlflow import MlflowClient

    def read():
        client = MlflowClient(store)
        run = client.get_run((tmp_path / "run/mlflow/run_id").read_text().strip())
        history = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        return run, history

    return read


def test_settings_figures_and_the_end_are_in_the_run(make_settings, read, tmp_path):
    wide = {f"option_{n}": n for n in range(150)}  # more parameters than MLflow takes at once
    monitor = MLflow(make_settings(steps=7, data={"chat_template_arguments": wide}), 0)
    monitor.write({"ce/head_0": 2.5, "train/weighted_loss": 3.0}, 1)
    monitor.write({"ce/head_0": 2.0}, 2)
    monitor.write_final({"humaneval/pass@1": 0.25}, 7)
    assert read()[0].info.status == "RUNNING"
    monitor.close(finished=True)
    run, history = read()
    assert history == {
        "ce/head_0": [(1, 2.5), (2, 2.0)],
        "train/weighted_loss": [(1, 3.0)],
        "final/humaneval/pass_1": [(7, 0.25)],
    }
    assert run.info.status == "FINISHED"
    assert run.info.run_name == str(tmp_path / "run")
    parameters = run.data.params
    assert (parameters["steps"], parameters["model.horizon"], parameters["monitor"]) == ("7", "3", "['tensorboard']")
    assert parameters["data.chat_template_arguments.option_149"] == "149"


def test_a_resumed_run_goes_on_in_the_same_one_and_a_new_one_does_not(make_settings, read):
    settings, ids = make_settings(), []
    for first_step, changed in ((0, settings), (3, make_settings(steps=9)), (0, settings)):
        monitor = MLflow(changed, first_step)
        monitor.write({"ce/head_0": 1.0}, first_step)
        monitor.close(finished=False)
        run, history = read()
        assert run.info.status == "KILLED"
        ids.append((run.info.run_id, history["ce/head_0"]))
    assert ids[0][0] == ids[1][0] != ids[2][0]
    assert ids[1][1] == [(0, 1.0), (3, 1.0)]


def test_a_server_that_is_away_for_a_while_loses_no_figure(make_settings, read, monkeypatch, capsys):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    monitor = MLflow(make_settings(), 0)
    log_batch = MlflowClient.log_batch

    def refuse(*args, **options):
        raise MlflowException("no\nanswer")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    monitor.write({"ce/head_0": 1.0}, 1)
    monitor.write({"ce/head_0": 2.0}, 2)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: mlflow: ")]
    assert [line.split(":")[2] for line in warnings] == [
        " 1 figures up to step 1 are not sent yet",
        " 2 figures up to step 2 are not sent yet",
    ]
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monitor.write({"ce/head_0": 3.0, "ce/head_1": math.nan}, 3)
    monitor.close(finished=True)
    assert read()[1]["ce/head_0"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_store_that_does_not_know_the_run_is_refused_in_one_line(make_settings, store, tmp_path):
    (tmp_path / "run/mlflow").mkdir(parents=True)
    (tmp_path / "run/mlflow/run_id").write_text(json.dumps("elsewhere"))
    with pytest.raises(UserError, match=rf"^monitor: mlflow: .*elsewhere.*remove {tmp_path}/run/mlflow") as caught:
        MLflow(make_settings(), 4)
    assert "\n" not in str(caught.value)
