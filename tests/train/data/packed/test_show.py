from typing import Any

from wmtp_train.data.packed.show import show_rows


def test_what_is_learned_is_marked_and_documents_stand_apart(make_prepared: Any, tokenizer: Any) -> None:
    prepared = make_prepared(
        {"prompt": "alpha ", "completion": "beta"}, {"text": "gamma"}, {"prompt": "def", "completion": " one"},
        sequence_length=64,
    )  # fmt: skip
    (row,) = show_rows(prepared, tokenizer, 3)
    lines = row.splitlines()
    assert lines[0] == "--- row 0"
    assert sorted(lines[1:]) == [
        "document 0: alpha ⟦beta<eos>⟧", "document 1: ⟦gamma<eos>⟧", "document 2: def⟦ one<eos>⟧",
    ]  # fmt: skip


def test_rows_are_spread_over_the_set(prepared: Any, tokenizer: Any) -> None:
    numbers = [int(row.splitlines()[0].split()[-1]) for row in show_rows(prepared, tokenizer, 3)]
    assert (numbers[0], numbers[-1], len(numbers)) == (0, len(prepared.rows) - 1, 3)
    assert len(list(show_rows(prepared, tokenizer, 0))) == 0
