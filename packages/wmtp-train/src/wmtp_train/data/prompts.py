"""Rows of corpus files → prompts to go on from: what stands before the last answer, or how a text begins."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_models import encode_prompt
from wmtp_train.data.conversations import ChatTemplate, read_messages
from wmtp_train.data.files import read_rows

_COLUMNS = ("messages", "conversations", "instruction", "input", "output", "system", "tools", "prompt", "text")


def read_prompts(
    paths: list[Path], tokenizer: PreTrainedTokenizerFast, chat: ChatTemplate, text_tokens: int
) -> list[list[int]]:
    """Return the prompts of all rows, in their order.

    Of a conversation that is everything before the assistant's last message, or all of it where another has the last
    word, as the chat template renders it for the assistant to go on; of a `prompt` the prompt; of a `text` its first
    tokens. Texts that are no longer than that are left out.

    Args:
        paths: of corpus files.
        tokenizer: of the model that goes on.
        chat: renders conversations.
        text_tokens: how many tokens of a text are its prompt.

    Raises:
        UserError: a row has no prompt, or its template refuses it; no prompt remains.
    """
    prompts = [prompt for path in paths for prompt in _of_file(path, tokenizer, chat, text_tokens)]
    if not prompts:
        raise UserError(f"no row of the data has more than {text_tokens} tokens: lower --text-tokens, or give prompts")
    return prompts


def _of_file(
    path: Path, tokenizer: PreTrainedTokenizerFast, chat: ChatTemplate, text_tokens: int
) -> Iterator[list[int]]:
    for where, row in read_rows(path, _COLUMNS):
        found = {name: value for name, value in row.items() if value is not None}
        if found.keys() & {"messages", "conversations", "instruction"}:
            yield _of_conversation(where, found, chat)
        elif isinstance(found.get("prompt"), str) and found["prompt"]:
            yield encode_prompt(tokenizer, found["prompt"])
        elif isinstance(found.get("text"), str):
            tokens = encode_prompt(tokenizer, found["text"])
            if len(tokens) > text_tokens:
                yield tokens[:text_tokens]
        else:
            raise UserError(
                f"{where}: no prompt in it: a row holds `messages`, `conversations`, `instruction`, `prompt` or "
                f"`text`, and this one has the columns {sorted(row)}"
            )


def _of_conversation(where: str, row: dict[str, Any], chat: ChatTemplate) -> list[int]:
    messages = read_messages(where, row)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: the assistant is asked nothing: begin the conversation with a user")
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    return chat.encode_prompt(where, messages, tools or None)
