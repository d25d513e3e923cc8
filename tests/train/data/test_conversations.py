"""What is learned of conversations, token by token, under templates written from the formats that models publish."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_train.data.conversations import ChatTemplate, messages_of
from wmtp_train.data.packed.packing import unpack
from wmtp_train.data.packed.prepared import prepare

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Thoughts of turns before the last question are dropped; without thinking, a server begins replies with empty ones.
QWEN_3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system prompt stands in the last question.
MISTRAL = (
    "<s>{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if system and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ system }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]"),
]
ASK, TOLD, MORE, SAID = "alpha?", "beta — ünï 数", "gamma?", "delta"
SYSTEM = {"role": "system", "content": "def one"}
ONCE = [{"role": "user", "content": ASK}, {"role": "assistant", "content": TOLD}]
TWICE = [*ONCE, {"role": "user", "content": MORE}, {"role": "assistant", "content": SAID}]
THOUGHT = [ONCE[0], {"role": "assistant", "content": TOLD, "reasoning_content": "well"}]


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    chatty = copy.deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": SPECIAL})
    return chatty


@pytest.mark.parametrize(
    ("template", "arguments", "messages", "learned"),
    [
        (CHATML, {}, [SYSTEM, *TWICE], [f"{TOLD}<|im_end|>", f"{SAID}<|im_end|>"]),
        (MARKED, {}, [SYSTEM, *TWICE], [f"{TOLD}<|im_end|>", f"{SAID}<|im_end|>"]),
        (LLAMA_3, {}, [SYSTEM, *TWICE], [f"{TOLD}<|eot_id|>", f"{SAID}<|eot_id|>"]),
        (QWEN_3, {}, THOUGHT, [f"<think>\nwell\n</think>\n\n{TOLD}<|im_end|>"]),
        (QWEN_3, {"enable_thinking": False}, [SYSTEM, *ONCE], [f"{TOLD}<|im_end|>"]),
        (GEMMA, {}, TWICE, [f"{TOLD}<end_of_turn>", f"{SAID}<end_of_turn>"]),
        (MISTRAL, {}, TWICE, [f" {TOLD}</s>", f" {SAID}</s>"]),
        (MISTRAL, {}, [SYSTEM, *ONCE], [f" {TOLD}</s>"]),
    ],
    ids=["chatml", "marked", "llama 3", "qwen 3 thinking", "qwen 3", "gemma", "mistral", "mistral with a system"],
)
def test_replies_are_learned_and_nothing_else(
    chat_tokenizer: PreTrainedTokenizerFast,
    template: str,
    arguments: dict[str, Any],
    messages: list[dict[str, Any]],
    learned: list[str],
) -> None:
    ids, mask = ChatTemplate(chat_tokenizer, template, arguments).encode("here", messages, None)
    whole = chat_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, **arguments)[
        "input_ids"
    ]
    assert ids == whole, "as transformers renders it"
    runs, before = [], 0
    for token, counts in zip(ids, mask, strict=True):
        if counts:
            runs += [[]] if not before else []
            runs[-1].append(token)
        before = counts
    assert [chat_tokenizer.decode(run) for run in runs] == learned
    text = chat_tokenizer.decode(ids)
    assert sum(map(len, runs)) == len(chat_tokenizer("".join(learned), add_special_tokens=False)["input_ids"])
    assert all(text.count(run) == 1 for run in learned)


@pytest.mark.parametrize(
    ("template", "arguments", "messages", "message"),
    [
        (
            None,
            {},
            ONCE,
            r"here: a conversation, and the tokenizer has no chat template: name one in data.chat_template",
        ),
        (
            GEMMA,
            {},
            [SYSTEM, *ONCE],
            r"here: the chat template refuses this conversation \(System role not supported\)",
        ),
        ("{{ messages[7].content }}", {}, ONCE, r"here: the chat template refuses this conversation \("),
        ("{% for", {}, ONCE, r"here: the chat template refuses this conversation \("),
        (QWEN_3, {}, TWICE, r"here: the chat template renders message 2 otherwise once more messages follow"),
        (QWEN_3, {"enable_thinking": False}, TWICE, "renders message 2 otherwise once more messages follow"),
        (MISTRAL, {}, [SYSTEM, *TWICE], r"renders message 3 otherwise once more messages follow"),
        (MARKED, {}, [ONCE[0], {"role": "tool", "content": "x"}], r"here: no token of this conversation is learned"),
    ],
    ids=["none", "raises", "fails", "broken", "qwen 3", "qwen 3 without thinking", "mistral", "nothing learned"],
)
def test_what_cannot_be_told_is_refused(
    chat_tokenizer: PreTrainedTokenizerFast,
    template: str | None,
    arguments: dict[str, Any],
    messages: list[dict[str, Any]],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        ChatTemplate(chat_tokenizer, template, arguments).encode("here", messages, None)


def test_a_tokenizer_that_splits_special_tokens_of_texts_finds_those_of_its_template(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    splits = copy.deepcopy(chat_tokenizer)
    splits.split_special_tokens = True
    found = ChatTemplate(splits, CHATML, {}).encode("here", TWICE, None)
    assert found == ChatTemplate(chat_tokenizer, CHATML, {}).encode("here", TWICE, None)
    assert len(splits("<|im_end|>", add_special_tokens=False)["input_ids"]) > 1, "and goes on splitting"


def test_tools_reach_the_template_and_calls_are_learned(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "one"}}]}
    row = {"messages": [ONCE[0], call, {"role": "tool", "content": "two"}, ONCE[1]]}
    tools = [{"type": "function", "function": {"name": "one"}}]
    ids, mask = ChatTemplate(chat_tokenizer, template, {}).encode("here", messages_of("here", row), tools)
    assert "<|im_start|>tools\n[{" in chat_tokenizer.decode(ids)
    told = chat_tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts])
    assert told == f"[one]<|im_end|>{TOLD}<|im_end|>"


def test_the_three_forms_say_the_same() -> None:
    plain = {"messages": [{**message, "name": None} for message in [SYSTEM, *ONCE]]}
    shared = {"conversations": [{"from": "system", "value": "def one"}, {"from": "human", "value": ASK}]}
    shared["conversations"].append({"from": "gpt", "value": TOLD})
    alpaca = {"instruction": ASK, "input": "", "output": TOLD, "system": "def one"}
    assert messages_of("", plain) == messages_of("", shared) == messages_of("", alpaca) == [SYSTEM, *ONCE]
    with_input = messages_of("", {"instruction": "a", "input": "b", "output": "c"})
    assert with_input[0] == {"role": "user", "content": "a\n\nb"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ONCE[0]]}, "here: the conversation ends with the role 'user', and nothing follows to learn"),
        ({"messages": []}, "here: the conversation is empty"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "here: a message has the role 'bot': use system, developer"),
        ({"messages": "hello"}, "here: `messages` is not a list of messages"),
        ({"messages": ["hello"]}, "here: `messages` is not a list of messages"),
        (
            {"conversations": [{"role": "user"}]},
            r"here: a turn of `conversations` has `from` and `value`, this has \['r",
        ),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "a message has the role 'narrator'"),
        ({"instruction": "a", "output": 3}, "here: `output` is a int: make it a string"),
    ],
)
def test_a_bad_conversation_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        messages_of("here", row)


def test_rows_hold_the_targets_of_conversations_and_tokens(
    jsonl: Callable[..., Path], tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Several turns of one document, in rows that cut it anywhere, beside plain texts and given tokens."""
    chats = jsonl({"messages": TWICE, "reward": 0.5}, {"messages": ONCE}, name="chats.jsonl")
    texts = jsonl({"text": "alpha beta"}, {"prompt": "def", "completion": " one"}, name="texts.jsonl")
    tokens = jsonl({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}, {"input_ids": [9, 8]}, name="t.jsonl")
    chat = ChatTemplate(chat_tokenizer, CHATML, {})
    files = [chats, texts, tokens]
    prepared = prepare(files, chat_tokenizer, "tiny", 8, 0, tmp_path / "cache", num_proc=2, chat=chat)
    found = unpack(prepared.rows)
    for number, messages in enumerate((TWICE, ONCE)):
        ids, mask = chat.encode("", messages, None)
        assert found["input_ids"][number].tolist() == ids
        assert found["labels"][number].tolist() == [
            token if counts else -100 for token, counts in zip(ids, mask, strict=True)
        ]
    assert found["labels"][2].tolist() == found["input_ids"][2].tolist()
    prompt = len(chat_tokenizer("def", add_special_tokens=False)["input_ids"])
    assert (found["labels"][3] == -100).tolist() == [n < prompt for n in range(len(found["labels"][3]))]
    assert [found["input_ids"][4].tolist(), found["labels"][4].tolist()] == [[5, 6, 7, 8], [-100, 6, -100, 8]]
    assert found["labels"][5].tolist() == [9, 8]
    assert prepared.has_rewards


def test_another_template_is_another_preparation(
    jsonl: Callable[..., Path], tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    chats = jsonl({"messages": ONCE})
    paths = {
        prepare([chats], chat_tokenizer, "", 8, 0, tmp_path / "cache", chat=ChatTemplate(chat_tokenizer, *how)).path
        for how in ((CHATML, {}), (LLAMA_3, {}), (CHATML, {"enable_thinking": True}), (CHATML, {}))
    }
    assert len(paths) == 3


def test_a_conversation_that_fails_is_named_by_file_and_line(
    jsonl: Callable[..., Path], tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    chats = jsonl({"messages": ONCE}, {"messages": [SYSTEM, *ONCE]})
    with pytest.raises(UserError, match=rf"{chats}:2: the chat template refuses this conversation \(System role"):
        prepare([chats], chat_tokenizer, "", 8, 0, tmp_path / "c", chat=ChatTemplate(chat_tokenizer, GEMMA, {}))


def test_json_of_tools_as_parquet_files_hold_it(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    from wmtp_train.data.corpus import read_texts

    tools = [{"type": "function", "function": {"name": "one"}}]
    path = jsonl({"messages": ONCE, "tools": json.dumps(tools)}, {"messages": ONCE, "tools": tools})
    (table,) = read_texts([path])
    assert [json.loads(said)["tools"] for said in table["conversation"].to_pylist()] == [tools, tools]
