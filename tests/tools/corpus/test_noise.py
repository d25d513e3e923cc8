from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.noise import KINDS, Span, insert_noise


@given(st.lists(st.text(alphabet="ab é", min_size=1, max_size=8), min_size=1, max_size=30), st.integers(0, 10**6))
def test_removing_the_new_spans_restores_the_text_and_old_spans_still_fit(lines: list[str], seed: int) -> None:
    text = "x" + "\n".join(lines)
    given_spans, position = [], 0
    for line in text.split("\n"):
        if line:
            given_spans.append(Span(position, position + len(line), "broken"))
        position += len(line) + 1
    noisy, spans = insert_noise(text, given_spans, Random(seed))
    assert all(left.end <= right.start for left, right in pairwise(spans))
    assert [noisy[s.start : s.end] for s in spans if s.kind == "broken"] == [text[s.start : s.end] for s in given_spans]
    restored = noisy
    for span in reversed([span for span in spans if span.kind != "broken"]):
        assert span.start == 0 or noisy[span.start - 1] == "\n"
        restored = restored[: span.start] + restored[span.end :]
    assert restored == text
    assert any(span.kind in KINDS for span in spans)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_block_has_about_its_length_and_whole_lines(kind: str) -> None:
    text = "def f(x):\n    return x\n"
    for length in (150, 900):
        block = KINDS[kind](Random(1), length, text)
        assert 0.9 * length <= len(block) <= length + 200
        assert block.endswith("\n")
        assert all(line.strip() for line in block.splitlines())
    assert KINDS[kind](Random(2), 300, text) == KINDS[kind](Random(2), 300, text) != KINDS[kind](Random(3), 300, text)


def test_shuffled_words_are_the_document_s_own() -> None:
    assert set(KINDS["shuffled"](Random(0), 400, "alpha beta\ngamma").split()) == {"alpha", "beta", "gamma"}


def test_four_characters_of_noise_for_five_of_code_on_average() -> None:
    text = "a line of code\n" * 300
    added = sum(len(insert_noise(text, [], Random(seed))[0]) - len(text) for seed in range(100)) / 100
    assert 0.7 < added / len(text) < 0.9
