import itertools

import pytest
import torch

from benchmarks import parts
from benchmarks.parts import PARTS, PartClock, measure_parts
from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS

CPU = torch.device("cpu")
SHAPE = StepShape(vocab_size=300, batch=2, length=16, hidden_size=32, layers=2)


@pytest.mark.parametrize("name", STEP_VARIANTS)
def test_parts_follow_each_other_as_a_step_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[str] = []
    monkeypatch.setattr(PartClock, "mark", lambda _clock, part: marks.append(part))
    measure_parts(STEP_VARIANTS[name], SHAPE, CPU, torch.float32, steps=1)
    one_step = marks[: len(marks) // 3]  # two more to warm up
    assert marks == one_step * 3
    # The plan is made before the forward; its hint is asked inside the loss's, once a chunk.
    hint = [] if STEP_VARIANTS[name].dense else ["loss forward", "selection"]
    parts_in_order = list(PARTS)
    if STEP_VARIANTS[name].next_token:  # there is nothing between trunk and loss
        parts_in_order.remove("heads backward")
    before, forward, after = parts_in_order[:2], parts_in_order[2:4], parts_in_order[4:]
    assert one_step == [*before, "selection", *forward, *hint, *after]


def test_the_time_between_marks_belongs_to_the_later(monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.accumulate([100.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(parts.time, "perf_counter", lambda: next(times))
    clock = PartClock(CPU)
    clock.start()
    for part in ("data", "selection", "data"):
        clock.mark(part)
    assert {part: seconds for part, seconds in clock.seconds.items() if seconds} == {"data": 5.0, "selection": 2.0}
