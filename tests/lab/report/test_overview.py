import io
from typing import Any

import matplotlib.image
import pytest

from wmtp_core.errors import UserError
from wmtp_lab.report.overview import picture
from wmtp_lab.report.passage import Token
from wmtp_lab.report.passage_plot import layout, window
from wmtp_lab.report.runs import read_runs


def token(text: str, kind: str = "", starts_document: bool = False) -> Token:
    return Token(text, kind, 0, starts_document, "")


def rows(*tokens: Token, columns: int) -> list[str]:
    lines: dict[int, str] = {}
    for line, column, text, _ in layout(list(tokens), columns):
        lines[line] = lines.get(line, "").ljust(column) + text
    return [lines.get(line, "") for line in range(max(lines) + 1)]


def test_text_keeps_its_lines_and_columns() -> None:
    assert rows(token("if"), token(" x:\n"), token("\ty"), token("\n\n"), token("z"), columns=20) == [
        "if x:",
        "    y",
        "",
        "z",
    ]


def test_lines_are_wrapped_before_words_and_long_words_where_they_must() -> None:
    assert rows(token("one"), token(" fo"), token("ur"), token(" x"), columns=6) == ["one", " four", " x"]
    assert rows(token("abcdefgh"), token("ij"), columns=4) == ["abcd", "efgh", "ij"]
    assert rows(token("abcd"), token("\n"), token("efgh"), columns=4) == ["abcd", "efgh"]


def test_a_document_starts_a_line() -> None:
    assert rows(token("a"), token("b", starts_document=True), columns=9) == ["a", "b"]


def test_the_window_shows_both_clean_text_and_noise() -> None:
    cells = layout([token("aaaa\n")] * 10 + [token("####\n", "log")] * 10, columns=9)
    shown = window(cells, 5)
    assert [line for line, *_ in shown] == [0, 1, 2, 3, 4]
    assert [part.kind for *_, part in shown] == ["", "", "", "log", "log"]
    assert len(window(cells[:3], 5)) == 3


def test_the_picture_is_wide_and_not_empty(make_run: Any) -> None:
    image = matplotlib.image.imread(io.BytesIO(picture(read_runs([make_run()]))))
    height, width, _ = image.shape
    assert width >= 1600
    assert width / height == pytest.approx(16 / 7, rel=0.01)
    for part in (image[: height // 2, : width // 3], image[height // 2 :, : width // 3], image[:, width // 2 :]):
        assert part.min() < 0.5 < part.max()


def test_without_a_marked_passage_there_is_no_picture(make_run: Any) -> None:
    with pytest.raises(UserError, match="--picture: no run has a passage"):
        picture(read_runs([make_run(passages={})]))
