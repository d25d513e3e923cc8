"""What of a row a model is asked to go on from."""

import json

import pytest
from transformers import AutoTokenizer

from wmtp_core import UserError
from wmtp_train.data.conversations import ChatTemplate
from wmtp_train.data.prompts import read_prompts

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ASKED = [{"role": "user", "content": "a"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "b"}]


@pytest.fixture
def read(tiny_home, tmp_path):
    def run(*rows, text_tokens=4, template=TEMPLATE):
        tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prompts = read_prompts([path], tokenizer, ChatTemplate(tokenizer, template, {}), text_tokens)
        return [tokenizer.decode(prompt) for prompt in prompts]

    return run


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": ASKED}, "<user>a<assistant>"),
        ({"messages": ANSWERED}, "<user>a<assistant>"),
        ({"messages": [*ANSWERED, {"role": "user", "content": "c"}]}, "<user>a<assistant>b<user>c<assistant>"),
        ({"messages": ANSWERED + ANSWERED}, "<user>a<assistant>b<user>a<assistant>"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "<user>a<assistant>"),
        ({"instruction": "a", "input": "c", "output": "b"}, "<user>a\n\nc<assistant>"),
        ({"instruction": "a", "system": "s"}, "<system>s<user>a<assistant>"),
        ({"prompt": "def f(", "completion": "x)"}, "def f("),
        ({"prompt": "def f("}, "def f("),
    ],
)
def test_what_stands_before_the_last_answer(read, row, prompt):
    assert read(row) == [prompt]


def test_of_a_text_its_beginning(read):
    assert read({"text": "zzzzzzzz"}, {"text": "zz"}) == ["zzzz"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "z"}, "no row of the data has more than 4 tokens: lower --text-tokens, or give prompts"),
        ({"title": "z"}, "prompts.jsonl:1: no prompt in it: a row holds"),
        ({"prompt": ""}, "prompts.jsonl:1: no prompt in it"),
        ({"messages": []}, "prompts.jsonl:1: the assistant is asked nothing"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "prompts.jsonl:1: the assistant is asked nothing"),
        ({"messages": [{"role": "narrator", "content": "b"}]}, "a message has the role 'narrator'"),
    ],
)
def test_rows_without_a_prompt(read, row, problem):
    with pytest.raises(UserError, match=problem):
        read(row)


def test_a_tokenizer_without_a_template(read):
    with pytest.raises(UserError, match=r"the tokenizer has no chat template: name one in data\.chat_template"):
        read({"messages": ASKED}, template=None)
