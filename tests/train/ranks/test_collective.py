import errno
import os
from dataclasses import replace

import pytest
from ranks_together import FAILURES, fail

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_train.ranks.collective import (
    fail_on_all_ranks,
    rank0_first,
    run_on_all_ranks,
    run_on_rank0,
    run_on_rank0_and_broadcast,
)


def test_alone_work_gives_its_result(processes):
    assert run_on_all_ranks(processes, lambda: 7, "it fails") == 7
    assert run_on_rank0_and_broadcast(processes, lambda: 7, "it fails") == 7
    assert rank0_first(processes, lambda: 5, "a five") == 5


def test_what_all_ranks_know_is_said_by_rank_0(processes):
    with pytest.raises(UserError, match="too hot"):
        fail_on_all_ranks(processes, "too hot")
    with pytest.raises(SystemExit) as end:
        fail_on_all_ranks(replace(processes, rank=1), "too hot")
    assert end.value.code == 2


def test_alone_what_the_system_refuses_is_one_line(processes):
    def refused():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")

    with pytest.raises(UserError, match=r"^it fails: here: no space left on device; fix it$"):
        run_on_all_ranks(processes, refused, "it fails", "fix it")
    with pytest.raises(UserError, match=r"^it fails: here: no space left on device; make room or fix the folder, then"):
        run_on_rank0(processes, refused, "it fails")
    with pytest.raises(ZeroDivisionError):  # a bug stays one
        run_on_all_ranks(processes, lambda: 1 // 0, "it fails")


@pytest.mark.slow
@pytest.mark.parametrize("failing", FAILURES)
def test_what_fails_on_one_rank_ends_both_and_rank_0_says_it(tmp_path, failing):
    line, code = on_ranks(tmp_path, 2, fail, failing)
    assert (line, code) == (FAILURES[failing], 2)
