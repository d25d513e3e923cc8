import json
import os

import pytest

from wmtp_core import UserError
from wmtp_train.metrics.monitors.jsonl import JsonLines


def lines(folder):
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def write(settings, first_step, steps):
    monitor = JsonLines(settings, first_step)
    for step in steps:
        monitor.write({"ce/head_0": step / 4}, step)
    monitor.close(finished=True)


def test_a_line_can_be_read_at_once(make_settings, tmp_path):
    monitor = JsonLines(make_settings(), 0)
    monitor.write({"ce/head_0": 2.5, "ce/head_1": float("nan"), "threshold/head_1": float("-inf")}, 3)
    assert lines(tmp_path) == [{"step": 3, "ce/head_0": 2.5, "ce/head_1": None, "threshold/head_1": None}]
    monitor.close(finished=True)


@pytest.mark.parametrize(
    ("first_step", "left"),
    [(0, []), (3, [0, 1, 2]), (9, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])],
)
def test_a_start_keeps_what_stands_before_its_first_step(make_settings, tmp_path, first_step, left):
    settings = make_settings()
    write(settings, 0, range(5))
    write(settings, first_step, [7])
    assert lines(tmp_path) == [{"step": step, "ce/head_0": step / 4} for step in [*left, 7]]


def test_a_line_that_a_kill_left_half_written_is_dropped(make_settings, tmp_path):
    settings = make_settings()
    write(settings, 0, range(3))
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "ce/he')
    write(settings, 3, [3])
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3]


def test_a_start_that_is_killed_while_it_drops_lines_has_dropped_none(make_settings, tmp_path, monkeypatch):
    settings = make_settings()
    write(settings, 0, range(5))
    before = lines(tmp_path)

    def die(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        JsonLines(settings, 2)
    assert lines(tmp_path) == before


@pytest.mark.parametrize("line", ["step: 1", "[1]", '{"loss": 2}'])
def test_a_file_of_something_else_is_refused_and_stays(make_settings, tmp_path, line):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(
        UserError, match=r"run/metrics\.jsonl: .* is no line of figures with a step: move the file away$"
    ):
        JsonLines(make_settings(), 3)
    assert (tmp_path / "run/metrics.jsonl").read_text() == f"{line}\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_final_metrics_have_a_line_of_their_own(make_settings, tmp_path):
    write(make_settings(), 0, [4])
    monitor = JsonLines(make_settings(), None)
    monitor.write_final({"clean/ce/head_0": 2.0}, 4)
    monitor.close(finished=True)
    assert lines(tmp_path)[1:] == [{"step": 4, "final/clean/ce/head_0": 2.0}]
