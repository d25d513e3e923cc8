import argparse
import inspect
import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from corpus.breakage import break_code
from corpus.cleaning import parse

CODE = '''"""A module that says what it does, in a few words."""

import json


def load(path, default=None):
    # Reads the file, if there is one.
    with open(path) as file:
        return {"content": json.load(file), "more": [1, 2, (3, 4)]}
'''
WRONG = {",": ";", ":": ";", ")": "]", "]": "}", "}": ")"}


def test_code_no_longer_parses() -> None:
    assert parse(CODE) is not None
    assert all(parse(break_code(CODE, Random(seed))[0]) is None for seed in range(100))


@given(st.text(alphabet="ab1_ ()[]{}:=.,;\"'#\\\n\té漢", max_size=200), st.integers(0, 1000))
def test_spans_are_the_edits_and_the_edits_are_wrong_marks(text: str, seed: int) -> None:
    edited, spans = break_code(text, Random(seed))
    assert len(edited) == len(text)
    differ = [position for position, (old, new) in enumerate(zip(text, edited, strict=True)) if old != new]
    assert spans == [(position, position + 1, "broken") for position in differ]
    assert all(edited[position] == WRONG[text[position]] for position in differ)


def test_three_quarters_of_the_marks_and_an_eighth_of_the_tokens_are_edited() -> None:
    text = inspect.getsource(argparse)
    _, spans = break_code(text, Random(0))
    assert 0.72 < len(spans) / sum(map(text.count, WRONG)) < 0.78
    assert 0.10 < len(spans) / len(re.findall(r"\w+|[^\w\s]", text)) < 0.16


def test_the_seed_decides() -> None:
    assert break_code(CODE, Random(3)) == break_code(CODE, Random(3)) != break_code(CODE, Random(4))
