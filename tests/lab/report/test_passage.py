from typing import Any

import pytest

from wmtp_core.errors import UserError
from wmtp_lab.report.passage import SHADES, read_passage

DARKEST = SHADES - 1


def passage_of(*weights: list[float | None], **changes: Any) -> Any:
    n = len(weights)
    content = {"tokens": ["x"] * n, "noise": [""] * n, "documents": [0] * n, "weights": list(weights)}
    return read_passage("noisy", content | changes)


def test_a_binary_passage_is_shaded_by_the_later_heads_that_keep_a_token() -> None:
    passage = passage_of([None, None, None], [1, None, None], [1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 1, None])
    assert passage.binary
    assert passage.later_heads == 2
    assert [token.shade for token in passage.tokens] == [None, None, 0, DARKEST / 2, DARKEST / 2, DARKEST, DARKEST / 2]
    assert passage.legend == [("0", 0), ("1", DARKEST / 2), ("2", DARKEST)]
    assert passage.tokens[0].decisions == "no head predicts it"
    assert passage.tokens[3].decisions == "head 0 keeps, head 1 keeps, head 2 drops"


def test_other_weights_are_shaded_by_their_mean_whatever_head_0_has() -> None:
    passage = passage_of([9.0, 0.5, 0.7], [0.1, 1.0, 1.2], [3.0, 1.6, None])
    assert not passage.binary
    assert passage.scale == pytest.approx((0.6, 1.6))
    assert [token.shade for token in passage.tokens] == [0, DARKEST / 2, DARKEST]
    assert passage.legend == [("0.60 or less", 0), ("1.60 or more", DARKEST)]
    assert passage.tokens[0].decisions == "head 0 9.00, head 1 0.50, head 2 0.70"


def test_a_few_extreme_weights_do_not_bleach_the_rest() -> None:
    passage = passage_of([1.0, 1000.0], *([1.0, 1 + k / 100] for k in range(50)))
    shades = [token.shade for token in passage.tokens]
    assert shades[0] == DARKEST
    assert set(shades) == set(range(SHADES))


def test_equal_weights_are_neither_pale_nor_dark() -> None:
    assert {token.shade for token in passage_of([1.0, 0.9], [1.0, 0.9]).tokens} == {DARKEST / 2}


def test_means_are_of_the_predictions_of_later_heads() -> None:
    passage = passage_of([1, None, None], [1, 1, None], [1, 0, 1], [1, 0, 0], [1, 1, 1], noise=["", "", "a", "a", ""])
    assert (passage.mean_clean, passage.mean_noise) == (1.0, 0.25)
    assert passage.kinds == {"a"}
    assert passage_of([1, 1]).mean_noise is None


def test_documents_begin_where_their_number_changes_and_control_characters_show() -> None:
    passage = passage_of([1, 1], [1, 1], [1, 1], documents=[4, 4, 7], tokens=["a\tb\n", "\x00\r", "<>"])
    assert [token.starts_document for token in passage.tokens] == [False, False, True]
    assert [token.text for token in passage.tokens] == ["a\tb\n", "␀␍", "<>"]


@pytest.mark.parametrize("changes", [{"tokens": ["x", "y"]}, {"weights": []}, {"noise": None}, {"weights": [None]}])
def test_what_is_no_passage_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="set noisy: needs tokens"):
        passage_of([1, 1], **changes)
