import argparse
import inspect
import re
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from corpus.breakage import break_code
from corpus.cleaning import parse
from corpus.noise import Span

BRACKETS = {"]": ")", "}": "]", ")": "}"}  # what stood where it now stands
CODE = '''"""A module that says what it does, in a few words."""

import json


def load(path, default=None):
    # Reads the file, if there is one.
    with open(path) as file:
        return {"content": json.load(file), "less": {default}, "more": [1, 2, (3, 4)]}
'''


def undone(edited: str, spans: list[Span], original: str) -> str:
    """The original again, edit by edit; it is asked only whether a semicolon was a comma or a colon."""
    restored, done = "", 0
    for start, end, kind in spans:
        assert kind == "broken"
        restored += edited[done:start]
        new = edited[start:end]
        if new == ";":
            assert original[len(restored)] in ",:"
            restored += original[len(restored)]
        elif new in BRACKETS:
            restored += BRACKETS[new]
        elif new.startswith(" "):
            assert restored.endswith(new[1:])
        else:
            first, space, second = re.fullmatch(r"(\w+|[^\w\s])( +)(\w+)", new).groups()
            restored += second + space + first
        done = end
    return restored + edited[done:]


def test_every_kind_of_edit_happens_and_code_no_longer_parses() -> None:
    kinds = set()
    for seed in range(60):
        text, spans = break_code(CODE, Random(seed))
        assert parse(text) is None
        assert undone(text, spans, CODE) == CODE
        for start, end, _ in spans:
            new = text[start:end]
            kinds.add(new if new in ";)]}" else "twice" if new.startswith(" ") else "swap")
    assert kinds == {";", ")", "]", "}", "twice", "swap"}


@given(st.text(alphabet="ab1_ ()[]{}:=.,\"'#\\\n\té漢", max_size=200), st.integers(0, 1000))
def test_spans_say_exactly_what_was_edited(text: str, seed: int) -> None:
    edited, spans = break_code(text, Random(seed))
    assert undone(edited, spans, text) == text
    assert all("\n" not in edited[start:end] for start, end, _ in spans)
    assert all(left.end <= right.start for left, right in pairwise(spans))
    assert all(edited.count(mark) == text.count(mark) for mark in "\"'#\\\n")


def test_a_fifth_of_the_tokens_of_code_is_edited() -> None:
    text = inspect.getsource(argparse)
    _, spans = break_code(text, Random(0))
    assert 0.16 < len(spans) / len(re.findall(r"\w+|[^\w\s]", text)) < 0.22


def test_a_text_of_more_than_12_words_is_edited() -> None:
    text = "\n".join(f"w{number}" for number in range(13))
    assert all(break_code(text, Random(seed))[1] for seed in range(50))


def test_the_seed_decides() -> None:
    assert break_code(CODE, Random(3)) == break_code(CODE, Random(3)) != break_code(CODE, Random(4))
