from dataclasses import replace

import pytest
from scaling.engines import Engine, read_engines
from scaling.plan import Plan
from scaling.traffic import engine_messages, received, traffic_table

ENGINES = read_engines()


@pytest.mark.parametrize(
    ("engine", "bytes_received"), zip(ENGINES, [6000, 7500, 19500, 18000, 19500, 18000], strict=True)
)
def test_what_reaches_each_of_4_gpus_in_3_micro_batches(engine: Engine, bytes_received: int) -> None:
    # Three quarters of: 2·4000; 2·4000 + 2000; 3·2·4000 + 2000; 3·(2·2000 + 4000).
    assert received(engine_messages(1000, engine, accumulation=3), gpus=4) == bytes_received


def test_gradients_in_bf16_are_half_the_bytes() -> None:
    messages = [engine_messages(1000, replace(engine, exchanged=2), accumulation=3) for engine in ENGINES[1:4]]
    assert [message.get("all_reduce", message.get("reduce_scatter")) for message in messages] == [2000, 6000, 6000]


def test_selection_receives_what_every_other_gpu_scored(plan: Plan) -> None:
    rows = {row.name: row.values for row in traffic_table(plan).rows}
    scores_and_validity, later_heads, positions, others, micro_batches = 8, 1, 16, 3, 3
    each = scores_and_validity * later_heads * positions * others * micro_batches
    assert list(rows["selection, scope batch"]) == [each] * len(ENGINES)
    assert not any(rows["selection, scope sequence"])
    assert rows["denominators"][0] == 3 * 8 * 2 * 2 * 3


def test_one_gpu_receives_nothing() -> None:
    assert not any(received(engine_messages(1000, engine, 2), gpus=1) for engine in ENGINES)
