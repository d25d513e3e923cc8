from dataclasses import replace

import pytest
from scaling.memory import memory_table
from scaling.plan import Plan


@pytest.fixture
def zero1(plan: Plan) -> dict[str, float]:
    """Rows of the column of stage 1."""
    table = memory_table(plan)
    return {row.name: row.values[table.columns.index("zero1")] for row in table.rows}


def test_a_sum_is_what_stands_and_the_larger_of_what_passes(plan: Plan, zero1: dict[str, float]) -> None:
    standing = 2000 + 2000 + 4000 + 3000
    passing = 4000 + zero1["loss op"] + zero1["selection, scope batch"] + zero1["activations, checkpointed*"]
    assert passing > zero1["while stepping"] == 1000
    assert zero1["**sum: scored ahead, checkpointed**"] == standing + passing
    assert zero1["**sum: live reference, whole, checkpointed**"] == standing + passing + 2000
    assert zero1["activations, all kept*"] > zero1["activations, checkpointed*"]


def test_a_step_that_takes_more_than_the_backward_counts(plan: Plan) -> None:
    large = replace(plan.policy, trunk=4 * 10**9)
    rows = {row.name: row.values for row in memory_table(replace(plan, policy=large)).rows}
    standing = sum(rows[name][0] for name in ("parameters", "gradients", "optimizer: master weights, two moments"))
    assert rows["**sum: scored ahead, checkpointed**"][0] == standing + 4 * large.parameters


def test_float32_takes_more_than_bf16(plan: Plan) -> None:
    rows = {row.name: row.values for row in memory_table(plan).rows}
    for name in ("loss op", "activations, checkpointed*", "activations, all kept*"):
        float32, *bf16 = rows[name]
        assert len(set(bf16)) == 1
        assert float32 > bf16[0] > 0
