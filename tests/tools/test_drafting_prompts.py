"""Prompts to answer: the same from the same interpreter, and nothing that is measured with among what is learned."""

import ast
import json

import pytest

import drafting_prompts
from wmtp_core import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    def run(name, **options):
        given = [word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", str(value))]
        monkeypatch.setattr("sys.argv", ["drafting_prompts.py", "--output", str(tmp_path / name), *given])
        drafting_prompts.main()
        return {path.name: path.read_text() for path in sorted((tmp_path / name).iterdir())}

    return run


def test_the_same_files_again(write):
    first = write("one")
    assert list(first) == ["chat.jsonl", "held_out_chat.jsonl", "held_out_python.jsonl", "python.jsonl"]
    assert {name: len(text.splitlines()) for name, text in first.items()} == {
        "chat.jsonl": 250, "held_out_chat.jsonl": 32, "held_out_python.jsonl": 32, "python.jsonl": 250,
    }  # fmt: skip
    assert write("two") == first


def test_no_topic_and_no_function_is_on_both_sides(write):
    files = {name: [json.loads(line) for line in text.splitlines()] for name, text in write("one").items()}
    asked = {name: " ".join(row["messages"][0]["content"] for row in files[name]) for name in files if "chat" in name}
    for topic in drafting_prompts._TOPICS:
        sides = [
            name for name, text in asked.items() if f" {topic} " in f" {text} ".replace("?", " ").replace(".", " ")
        ]
        assert len(sides) <= 1, topic
    learned, measured = ({row["prompt"] for row in files[name]} for name in ("python.jsonl", "held_out_python.jsonl"))
    assert learned.isdisjoint(measured)
    for prompt in learned | measured:
        (function,) = ast.parse(prompt).body
        assert ast.get_docstring(function)
        assert prompt.endswith("\n")


def test_more_than_there_are(write):
    with pytest.raises(UserError, match=r"there are 250 chat prompts for chat\.jsonl, not 1000: ask for fewer"):
        write("one", train=1000)
