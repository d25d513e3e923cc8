import pytest

from scaling.memory import STAGES
from scaling.plan import Plan
from scaling.traffic import engine_messages, received, traffic_table


@pytest.mark.parametrize(("stage", "bytes_received"), [(0, 6000), (1, 4500), (2, 10500), (3, 13500)])
def test_what_reaches_each_of_4_gpus_in_3_micro_batches(stage: int, bytes_received: int) -> None:
    # Three quarters of: 2·4000; 2·2000 + 2000; 3·2·2000 + 2000; 3·(2·2000 + 2000).
    assert received(engine_messages(1000, stage, accumulation=3), gpus=4) == bytes_received


def test_selection_receives_what_every_other_gpu_scored(plan: Plan) -> None:
    rows = {row.name: row.values for row in traffic_table(plan).rows}
    scores_and_validity, later_heads, positions, others, micro_batches = 8, 1, 16, 3, 3
    each = scores_and_validity * later_heads * positions * others * micro_batches
    assert list(rows["selection, scope batch"]) == [each] * len(STAGES)
    assert not any(rows["selection, scope sequence"])
    assert rows["denominators"][0] == 3 * 8 * 2 * 2 * 3


def test_one_gpu_receives_nothing() -> None:
    assert [received(engine_messages(1000, stage, 2), gpus=1) for stage in range(4)] == [0, 0, 0, 0]
