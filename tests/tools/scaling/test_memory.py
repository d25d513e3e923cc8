import pytest

from scaling.memory import STAGES, held_by_engine, memory_table
from scaling.plan import Plan


@pytest.mark.parametrize(
    ("stage", "offload", "each"),
    [
        (0, False, (4000, 4000, 8000)),
        (1, False, (2000, 2000, 3000)),
        (2, False, (2000, 500, 3000)),
        (3, False, (500, 500, 3000)),
        (2, True, (2000, 0, 0)),
        (3, True, (500, 0, 0)),
    ],
)
def test_what_an_engine_holds(stage: int, offload: bool, each: tuple[int, int, int]) -> None:
    held = held_by_engine(1000, 4, stage, offload)
    assert (held["parameters"], held["gradients"], held["optimizer"]) == each


def test_a_sum_is_what_stands_and_the_larger_of_what_passes(plan: Plan) -> None:
    rows = {row.name: row.values for row in memory_table(plan).rows}
    stage = STAGES.index("1")
    standing = 2000 + 2000 + 3000 + 1e9
    passing = rows["loss op"][stage] + rows["selection, scope batch"][stage]
    passing += rows["activations, checkpointed*"][stage]
    assert passing > rows["float32 gradients while stepping"][stage] == 1000
    assert rows["**sum: scored ahead, checkpointed**"][stage] == standing + passing
    assert rows["**sum: live reference, whole, checkpointed**"][stage] == standing + passing + 2000
    assert rows["activations, all kept*"][stage] > rows["activations, checkpointed*"][stage]


def test_only_stage_3_gathers_parameters(plan: Plan) -> None:
    rows = {row.name: row.values for row in memory_table(plan).rows}
    assert list(rows["gathered parameters"]) == [0, 0, 0, 2000, 0, 2000]
