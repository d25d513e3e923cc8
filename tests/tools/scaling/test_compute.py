import pytest
from scaling import compute
from scaling.plan import Plan


def test_work_for_one_token(plan: Plan) -> None:
    model = plan.policy
    layer = 2 * 100 + 4 * 8 * 10
    assert compute.forward(model, 8) == 4 * layer  # two of the trunk, two heads
    assert compute.loss_pass(model) == 2 * 2 * 10 * 20
    assert compute.training_step(model, 8, None, checkpointing=False) == 3 * 4 * layer + 3 * 800
    assert compute.training_step(model, 8, None, checkpointing=True) == 4 * 4 * layer + 3 * 800
    # Half of the one later head's predictions: three quarters of all.
    selected = compute.training_step(model, 8, 0.5, checkpointing=False)
    assert selected == 3 * 4 * layer - 0.5 * 4 * 60 + 2.5 * 800


def test_gpu_hours_are_operations_over_what_a_gpu_is_said_to_do(plan: Plan) -> None:
    table = compute.compute_table(plan)
    assert "calculated" in table.columns[1]
    flop, hours = table.rows[0].values
    # 3600 tokens at half of 1000 operations a second.
    assert hours == pytest.approx(flop * 1e9 / 500)
