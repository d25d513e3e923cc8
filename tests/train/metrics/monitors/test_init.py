import importlib
import importlib.machinery
import json
import sys

import pytest
from ranks_without_a_library import open_run

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_train.metrics.monitors import KINDS, open_monitors, require_libraries
from wmtp_train.settings.schema import Settings


def test_every_name_of_the_setting_has_its_destination():
    choices = Settings.model_json_schema()["properties"]["monitor"]["items"]["enum"]
    assert choices == list(KINDS)
    assert Settings().monitor == ["tensorboard"]


def test_figures_reach_every_destination_that_is_named_once(processes, make_settings, tmp_path):
    monitors = open_monitors(make_settings(monitor=["jsonl", "tensorboard", "jsonl"]), processes, 0)
    monitors.write({"ce/head_0": 2.0}, 1)
    monitors.close(finished=True)
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text()) == {"step": 1, "ce/head_0": 2.0}
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1


def test_without_destinations_nothing_is_written(processes, make_settings, tmp_path):
    monitors = open_monitors(make_settings(monitor=[]), processes, 0)
    monitors.write({"ce/head_0": 2.0}, 1)
    monitors.write_final({"clean/ce/head_0": 2.0}, 1)
    monitors.close(finished=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_library_that_rank_0_lacks_ends_all_ranks_before_anything_is_written(make_settings, tmp_path):
    settings = make_settings(algo="mtp-baseline", monitor=["tensorboard", "wandb"], data={"cache_dir": tmp_path / "c"})
    first, second = on_ranks(tmp_path, 2, open_run, settings)
    assert first.startswith("monitor names wandb, which is not installed: pip install")
    assert "\n" not in first
    assert second == 2
    assert {path.name for path in tmp_path.iterdir()} == {"deepspeed.json", "result_0.pt", "result_1.pt"}


def test_a_folder_of_that_name_is_no_library(tmp_path, monkeypatch):
    """wandb itself makes a folder `wandb`, and Python would import it as a package without a file."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match=r"monitor names mlflow, .*wmtp-train\[mlflow\]"):
        require_libraries(["jsonl", "mlflow"])
    (tmp_path / "mlflow").mkdir()
    importlib.invalidate_caches()
    assert importlib.machinery.PathFinder.find_spec("mlflow", [str(tmp_path)]) is not None
    with pytest.raises(UserError, match="monitor names mlflow"):
        require_libraries(["mlflow"])
    (tmp_path / "mlflow/__init__.py").touch()
    importlib.invalidate_caches()
    require_libraries(["tensorboard", "jsonl", "mlflow"])
