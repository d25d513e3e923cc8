from scaling.plan import Plan
from scaling.storage import storage_table


def test_files_of_a_run(plan: Plan) -> None:
    rows = {row.name: list(row.values) for row in storage_table(plan).rows}
    assert rows["a checkpoint"] == [12000, 14000, 14000, 12000, 14000, 12000]
    assert rows["keep_checkpoints: 2"] == [36000, 42000, 42000, 36000, 42000, 36000]
    assert rows["the final model"] == [4000, 2000, 2000, 2000, 2000, 2000]
    assert rows["scores, float16"] == [7200] * 6
    assert rows["main memory of a node at start"] == [8000] * 6
    assert rows["main memory of a node in training"] == [0, 0, 0, 0, 9000, 11000]
