import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

from wmtp_core import UserError
from wmtp_lab.measure.memory import peak_memory, why_not_measured

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("forks")
needs_proc = pytest.mark.skipif(why_not_measured(CPU) is not None, reason=str(why_not_measured(CPU)))
MB = 2**20


def prepare(megabytes: int) -> Callable[[], None]:
    inputs = torch.ones(64 * MB // 4)  # does not count

    def operation() -> None:
        held = torch.ones(megabytes * MB // 4)
        del held
        torch.ones(megabytes * MB // 8).add_(inputs[0])  # after the peak

    return operation


@needs_proc
def test_the_peak_is_counted_without_inputs_or_other_runs() -> None:
    measured = [peak_memory(partial(prepare, 4), partial(prepare, size), CPU) / MB for size in (200, 50)]
    assert measured == pytest.approx([200, 50], abs=5)


def die() -> Callable[[], None]:
    os._exit(9)


@needs_proc
def test_a_process_that_is_ended_is_one_line() -> None:
    with pytest.raises(UserError, match="the process was ended, probably for lack of memory"):
        peak_memory(die, die, CPU)
