import errno
import os

import pytest
from forked import on_ranks
from ranks_together import FAILURES, fail

from wmtp_core import UserError
from wmtp_train.together import found_by_rank_0, from_rank_0, gather, on_rank_0, together


def test_alone_work_gives_its_result(processes):
    assert together(lambda: 7, "it fails") == 7
    assert gather("mine") == ["mine"]
    assert from_rank_0("mine") == "mine"
    assert found_by_rank_0(lambda: 7, "it fails") == 7


def test_alone_what_the_system_refuses_is_one_line(processes):
    def refused():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")

    with pytest.raises(UserError, match=r"^it fails: here: no space left on device; mend it$"):
        together(refused, "it fails", "mend it")
    with pytest.raises(
        UserError, match=r"^it fails: here: no space left on device; make room or mend the folder, then"
    ):
        on_rank_0(refused, "it fails")
    with pytest.raises(ZeroDivisionError):  # a mistake of ours stays one
        together(lambda: 1 // 0, "it fails")


@pytest.mark.slow
@pytest.mark.parametrize("failing", FAILURES)
def test_what_fails_on_one_rank_ends_both_and_rank_0_says_it(tmp_path, failing):
    line, code = on_ranks(tmp_path, 2, fail, failing)
    assert (line, code) == (FAILURES[failing], 2)
