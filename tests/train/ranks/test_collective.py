import errno
import os

import pytest
from forked import on_ranks
from ranks_together import FAILURES, fail

from wmtp_core import UserError
from wmtp_train.ranks.collective import (
    all_gather_object,
    broadcast_object,
    run_on_all_ranks,
    run_on_rank0,
    run_on_rank0_and_broadcast,
)


def test_alone_work_gives_its_result(processes):
    assert run_on_all_ranks(lambda: 7, "it fails") == 7
    assert all_gather_object("mine") == ["mine"]
    assert broadcast_object("mine") == "mine"
    assert run_on_rank0_and_broadcast(lambda: 7, "it fails") == 7


def test_alone_what_the_system_refuses_is_one_line(processes):
    def refused():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")

    with pytest.raises(UserError, match=r"^it fails: here: no space left on device; mend it$"):
        run_on_all_ranks(refused, "it fails", "mend it")
    with pytest.raises(
        UserError, match=r"^it fails: here: no space left on device; make room or mend the folder, then"
    ):
        run_on_rank0(refused, "it fails")
    with pytest.raises(ZeroDivisionError):  # a mistake of ours stays one
        run_on_all_ranks(lambda: 1 // 0, "it fails")


@pytest.mark.slow
@pytest.mark.parametrize("failing", FAILURES)
def test_what_fails_on_one_rank_ends_both_and_rank_0_says_it(tmp_path, failing):
    line, code = on_ranks(tmp_path, 2, fail, failing)
    assert (line, code) == (FAILURES[failing], 2)
