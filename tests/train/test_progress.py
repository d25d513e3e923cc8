"""What bars write into a pipe, under a clock that the test turns, and to a terminal."""

import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from tqdm import std, tqdm

from wmtp_train import progress


@pytest.fixture
def clock(monkeypatch):
    """Moves time on by so many seconds; bars behave as if started in this process for the first time."""
    now = [1000.0]
    monkeypatch.setattr(std, "time", lambda: now[0])
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread that looks at the real clock
    for name in ("display", "close"):
        monkeypatch.setattr(tqdm, name, getattr(tqdm, name))

    def move(seconds):
        now[0] += seconds

    return move


@pytest.fixture
def written(monkeypatch):
    """Makes one end of a pipe stderr, lets bars run, and returns what has arrived at the other."""

    def watch(work):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w", encoding="utf-8") as stderr:
            monkeypatch.setattr("sys.stderr", stderr)
            progress.print_lines_off_terminal()
            work()
            stderr.flush()
        with os.fdopen(reader, encoding="utf-8", newline="") as pipe:
            return pipe.read()

    return watch


def train(clock, steps=200, seconds=1.0):
    """A bar as the training loop has it, with new figures at every fifth step."""
    with tqdm(desc="training rho1-wmtp", total=steps, unit="step") as bar:
        for step in range(1, steps + 1):
            clock(seconds)
            bar.update()
            if step % 5 == 0:
                bar.set_postfix({"head 0 loss": f"{step / 100:.3f}", "tokens/s": "3,100"})


def test_a_pipe_gets_a_line_a_minute_and_how_it_ended(clock, written):
    lines = written(lambda: train(clock)).splitlines(keepends=True)
    # A bar lets some steps pass between two looks at the clock, so a line may come a little after its minute.
    done = [int(re.search(r"(\d+)/200", line)[1]) for line in lines]
    assert len(lines) == 4
    assert [minute for minute in (1, 2, 3) if 60 * minute <= done[minute - 1] <= 60 * minute + 5 * minute] == [1, 2, 3]
    assert done[-1] == 200
    for line in lines:
        assert line.endswith("\n")
        assert "\r" not in line
        assert "\x1b" not in line
        assert re.match(
            r"training rho1-wmtp: .* \[\d\d:\d\d<\d\d:\d\d, .*step/s, head 0 loss=\d\.\d+, tokens/s=3,100\]", line
        )


def test_time_left_is_by_the_last_minute_with_its_pauses(clock, written):
    def work():
        with tqdm(desc="training", total=100, initial=40, unit="step") as bar:
            for _ in range(10):
                clock(3)
                bar.update()
            clock(30)  # an evaluation
            bar.update()
            for _ in range(49):
                clock(2)
                bar.update()

    first = written(work).splitlines()[0]
    assert first.startswith("training:  51%")
    assert "51/100 [01:00<04:27,  5.45s/step]" in first  # 11 steps in 60 seconds, 49 are left


def test_fast_steps_print_no_more_than_slow_ones(clock, written):
    assert len(written(lambda: train(clock, steps=20_000, seconds=0.01)).splitlines()) == 4


def test_what_is_done_within_a_minute_prints_nothing(clock, written):
    assert written(lambda: train(clock, steps=59)) == ""
    assert written(lambda: [clock(1) for _ in tqdm(range(59))]) == ""


def test_the_bars_of_other_libraries_do_the_same(clock, written, tmp_path, monkeypatch):
    import datasets

    datasets.enable_progress_bars()  # other tests want none
    monkeypatch.setattr(datasets.config, "PBAR_REFRESH_TIME_INTERVAL", 0)  # by the real clock

    def slow(batch):
        clock(50)
        return batch

    rows = datasets.Dataset.from_dict({"n": list(range(10))})

    def work():
        rows.map(slow, batched=True, batch_size=1, desc="tokenizing", cache_file_name=str(tmp_path / "rows.arrow"))
        datasets.disable_progress_bars()

    lines = written(work).splitlines(keepends=True)
    assert 4 <= len(lines) <= 500 // 60 + 1
    assert all(line.startswith("tokenizing: ") and line.endswith("]\n") and "\r" not in line for line in lines)
    assert "10/10" in lines[-1]


def test_bars_that_run_at_once_have_lines_of_their_own(clock, written):
    def work():
        with tqdm(desc="outer", total=2) as outer:
            for _ in range(2):
                with tqdm(desc="inner", total=100) as inner:
                    for _ in range(100):
                        clock(1)
                        inner.update()
                outer.update()

    lines = written(work).splitlines(keepends=True)
    assert {line.split(":")[0] for line in lines} == {"outer", "inner"}
    assert all(line.endswith("]\n") and "\r" not in line for line in lines)


def test_a_disabled_bar_prints_nothing(clock, written):
    assert written(lambda: [clock(70) for _ in tqdm(range(9), disable=True)]) == ""


def test_a_terminal_keeps_its_bar():
    code = (
        "from tqdm import tqdm\n"
        "from wmtp_train.progress import print_lines_off_terminal\n"
        "print_lines_off_terminal()\n"
        "for _ in tqdm(range(20), mininterval=0): pass"
    )
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    subprocess.run([sys.executable, "-c", code], stderr=writer, check=True)
    assert os.read(reader, 10**6).decode().count("\r") > 20


def test_a_bar_that_waits_before_it_is_shown_can_end_before(clock, written):
    def work():
        with tqdm(total=2, delay=100) as bar:
            bar.update(2)

    assert written(work) == ""
