import json
from pathlib import Path

import pytest

from wmtp_train.checkpoint.retention import complete_checkpoints, newest_checkpoint, rotate

BY = "held_out/ce/head_0"


@pytest.fixture
def checkpoints(tmp_path):
    def make(metrics):
        for step, figure in metrics.items():
            path = tmp_path / f"step_{step:08d}"
            path.mkdir()
            (path / "run.json").write_text(json.dumps({"metrics": {} if figure is None else {BY: figure}}))
        return tmp_path

    return make


def steps(folder):
    return [int(path.name.removeprefix("step_")) for path in complete_checkpoints(folder)]


def test_the_newest_is_found_by_its_step(checkpoints):
    folder = checkpoints({9: 1.0, 10: 1.0, 100: 1.0, 123456789: 1.0, 23456789: 1.0})
    assert newest_checkpoint(folder).name == "step_123456789"
    assert newest_checkpoint(folder / "absent") is None


def test_other_names_are_no_checkpoints(checkpoints):
    folder = checkpoints({1: 1.0})
    for other in ("step_00000002_keep", "step_00000003.damaged", ".step_00000004.partial", "step_5", "notes"):
        (folder / other).mkdir()
    rotate(folder, 1, None)
    assert steps(folder) == [1]
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize("damage", [Path.unlink, lambda run: run.write_bytes(b'{"fig\xff')], ids=["missing", "broken"])
def test_a_damaged_one_is_not_the_best(checkpoints, damage):
    folder = checkpoints({1: 1, 2: 2, 3: 3, 4: 4})
    damage(folder / "step_00000001" / "run.json")
    rotate(folder, 1, BY)
    assert steps(folder) == [2, 4]


@pytest.mark.parametrize(
    ("metrics", "keep", "best_by", "left"),
    [
        ({1: 1, 2: 2, 3: 3, 4: 4}, 2, None, [3, 4]),
        ({1: 1, 2: 2, 3: 3, 4: 4}, 2, BY, [1, 3, 4]),
        ({1: 3, 2: 1, 3: 2, 4: 4}, 1, BY, [2, 4]),
        ({1: 3, 2: 2, 3: 2, 4: 1}, 1, BY, [4]),
        ({1: 3, 2: 2, 3: 2, 4: 4}, 1, BY, [2, 3, 4]),
        ({1: None, 2: 2, 3: None, 4: None}, 1, BY, [2, 4]),
        ({1: None, 2: None, 3: None}, 1, BY, [3]),
        ({1: float("nan"), 2: 2, 3: float("inf")}, 1, BY, [2, 3]),
        ({1: 1}, 5, BY, [1]),
    ],
)
def test_the_newest_and_the_best_stay(checkpoints, metrics, keep, best_by, left):
    folder = checkpoints(metrics)
    rotate(folder, keep, best_by)
    assert steps(folder) == left


def test_the_best_of_what_is_to_be_high_is_the_highest(tmp_path):
    for step, value in {1: 1.5, 2: 2.0, 3: 1.7, 4: 1.0}.items():
        folder = tmp_path / f"step_{step:08d}"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"metrics": {"validation/tokens_per_forward": value}}))
    rotate(tmp_path, 1, "validation/tokens_per_forward")
    assert steps(tmp_path) == [2, 4]
