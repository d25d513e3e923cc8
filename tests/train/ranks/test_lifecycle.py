import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist

from wmtp_core import UserError
from wmtp_train.ranks import lifecycle as module
from wmtp_train.ranks.lifecycle import (
    run,
    seed_everything,
    start_processes,
)
from wmtp_train.ranks.preemption import Interrupted


@pytest.fixture
def no_group(monkeypatch):
    """`run` ends the process group; the one of the tests has to stay."""
    monkeypatch.setattr(module.dist, "is_initialized", lambda: False)


def test_without_a_launcher_a_process_is_a_group_of_one(processes):
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    assert (processes.rank, processes.world, processes.is_first) == (0, 1, True)


def test_starting_twice_is_starting_once(processes):
    group = dist.group.WORLD
    assert start_processes().data_parallel is dist.group.WORLD is group


def test_it_computes_where_it_can(processes):
    assert processes.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_seed_fixes_every_generator():
    def draws(seed):
        seed_everything(seed)
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    assert draws(3) == draws(3)
    assert all(ours != theirs for ours, theirs in zip(draws(3), draws(4), strict=True))


def fail():
    raise UserError("steps is 0; give more")


@pytest.mark.parametrize(("rank", "start"), [("0", "error: "), ("1", "error (rank 1): ")])
def test_a_users_error_is_one_line_and_exit_code_2(no_group, monkeypatch, capsys, rank, start):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run(fail)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{start}steps is 0; give more\n")


def test_an_error_of_ours_keeps_its_traceback(no_group):
    with pytest.raises(ZeroDivisionError):
        run(lambda: print(1 // 0))


def test_a_run_that_succeeds_returns(no_group, capsys):
    run(lambda: print("done"))
    assert capsys.readouterr().out == "done\n"


def stop():
    raise Interrupted("stopped by SIGTERM")


@pytest.mark.parametrize(("rank", "said"), [("0", "stopped by SIGTERM\n"), ("1", "")])
def test_a_run_that_was_asked_to_stop_ends_with_exit_code_75_and_says_so_once(
    no_group, monkeypatch, capsys, rank, said
):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        run(stop)
    assert end.value.code == 75
    assert capsys.readouterr().err == said


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] "


@pytest.mark.parametrize(
    "lost",
    [
        RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:123\nmore"),
        RuntimeError(f"{GLOO}Timed out waiting 5000ms for recv operation to complete"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_a_peer_that_is_gone_is_one_line_and_exit_code_1(no_group, monkeypatch, capsys, lost):
    def lose():
        raise lost

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        run(lose)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error (rank 1): lost contact with another process")
    assert line.endswith(f"({str(lost).splitlines()[0]})")


def test_an_error_in_the_maths_is_not_taken_for_a_lost_peer(no_group):
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(lambda: torch.zeros(2) + torch.zeros(3))


def test_the_rank_that_speaks_is_the_one_that_main_was_given(no_group, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)

    def begin_and_fail():
        monkeypatch.setenv("RANK", "3")  # as `start_processes` does under srun
        fail()

    with pytest.raises(SystemExit):
        run(begin_and_fail)
    assert capsys.readouterr().err.startswith("error (rank 3): ")
