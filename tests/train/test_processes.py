import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist

from wmtp_core import UserError
from wmtp_train import processes as module
from wmtp_train.processes import device, first_rank_first, run, seed_everything, start_processes, world_group


@pytest.fixture
def no_group(monkeypatch):
    """`run` ends the process group; the one of the tests has to stay."""
    monkeypatch.setattr(module.dist, "is_initialized", lambda: False)


def test_without_a_launcher_a_process_is_a_group_of_one(processes):
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    assert world_group() is None


def test_starting_twice_is_starting_once(processes):
    group = dist.group.WORLD
    start_processes()
    assert dist.group.WORLD is group


def test_it_computes_where_it_can(processes):
    assert device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_first_rank_hands_on_what_it_found(processes):
    assert first_rank_first(lambda: 5) == 5


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
