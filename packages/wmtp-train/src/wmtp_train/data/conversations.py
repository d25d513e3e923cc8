"""Conversations: the forms that rows come in → messages → text, of which what the assistant says is learned."""

import re
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from wmtp_core.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
# What the `from` of a ShareGPT row calls them.
_ROLE_OF = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def messages_of(where: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a row: its `messages`, `conversations` (`from`, `value`), or `instruction` and `output`.

    Raises:
        UserError: it is no list of messages, a role is unknown, or the assistant does not have the last word.
    """
    messages = read_messages(where, row)
    if not messages or messages[-1]["role"] != "assistant":
        last = f"ends with the role {messages[-1]['role']!r}" if messages else "is empty"
        raise UserError(f"{where}: the conversation {last}, and nothing follows to learn: end it with the assistant")
    return messages


def read_messages(where: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a row as `messages_of` does, whoever has the last word; `output` may be missing.

    Raises:
        UserError: it is no list of messages, or a role is unknown.
    """
    if "messages" in row:
        messages = _without_nulls(where, "messages", row["messages"])
    elif "conversations" in row:
        turns = _without_nulls(where, "conversations", row["conversations"])
        messages = [_from_sharegpt(where, turn) for turn in turns]
    else:
        asked = "\n\n".join(_string(where, row, name) for name in ("instruction", "input") if row.get(name))
        messages = [{"role": "system", "content": _string(where, row, "system")}] if row.get("system") else []
        messages.append({"role": "user", "content": asked})
        if "output" in row:
            messages.append({"role": "assistant", "content": _string(where, row, "output")})
    for message in messages:
        if message.get("role") not in ROLES:
            raise UserError(f"{where}: a message has the role {message.get('role')!r}: use {', '.join(ROLES)}")
    return messages


def _without_nulls(where: str, name: str, turns: Any) -> list[dict[str, Any]]:
    """Return dictionaries without what is None: parquet has every key in every row."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: `{name}` is not a list of messages, like [{{role: user, content: …}}]: fix it")
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _from_sharegpt(where: str, turn: dict[str, Any]) -> dict[str, Any]:
    if "from" not in turn or "value" not in turn:
        raise UserError(f"{where}: a turn of `conversations` has `from` and `value`, this has {sorted(turn)}: fix it")
    return {"role": _ROLE_OF.get(str(turn["from"]), turn["from"]), "content": turn["value"]}


def _string(where: str, row: dict[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise UserError(f"{where}: `{name}` is a {type(row.get(name)).__name__}: make it a string")
    text: str = row[name]
    return text


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, and how it is filled in.

    Args:
        tokenizer: whose template it is, unless another is given.
        template: another one, in Jinja.
        arguments: what the template is given beside messages and tools, such as `enable_thinking`.
    """

    tokenizer: PreTrainedTokenizerFast
    template: str | None
    arguments: dict[str, Any]

    def encode(self, where: str, messages: list[dict[str, Any]], tools: Any) -> tuple[list[int], list[int]]:
        """Return a conversation's token ids, and 1 for each token that the assistant has to say, 0 for the others.

        Where the template marks what the assistant says (`{% generation %}`), that is learned. Else every reply is
        what stands between the prompt that a server would render for it and the end of the conversation up to there,
        which must both begin the whole conversation's text.

        Raises:
            UserError: there is no template, it refuses the conversation, or neither way says what is learned.
        """
        template = self._require_template(where)
        marks = _GENERATION.search(template) is not None
        text, spans = self._render(where, template, messages, tools, marks=marks)
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        if not marks:
            spans = self._replies(where, template, messages, tools, text)
        learned = [0] * len(ids)
        for start, end in spans:
            inside = [i for i, (begin, stop) in enumerate(offsets) if begin >= start and stop <= end and stop > begin]
            # A template's line break after the end of a turn is nothing that a model is asked for.
            last = max((i for i in inside if ids[i] in special), default=None)
            if not marks and last is not None and not text[offsets[last][1] : end].strip():
                inside = [i for i in inside if i <= last]
            for i in inside:
                learned[i] = 1
        if not any(learned):
            raise UserError(f"{where}: no token of this conversation is learned: its replies are empty; remove it")
        return ids, learned

    def encode_prompt(self, where: str, messages: list[dict[str, Any]], tools: Any) -> list[int]:
        """Return the token ids of what a server renders for the assistant to go on from.

        Raises:
            UserError: there is no template, or it refuses the conversation.
        """
        text, _ = self._render(where, self._require_template(where), messages, tools, prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return ids

    def _require_template(self, where: str) -> str:
        template = self.template or self.tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError(
                f"{where}: a conversation, and the tokenizer has no chat template: name one in data.chat_template"
            )
        return template

    def _replies(
        self, where: str, template: str, messages: list[dict[str, Any]], tools: Any, text: str
    ) -> list[tuple[int, int]]:
        """Return where in the text each reply begins and ends."""
        replies = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(where, template, messages[:number], tools, prompt=True)[0] if number else ""
            until = self._render(where, template, messages[: number + 1], tools)[0]
            if not (text.startswith(prompt) and text.startswith(until) and len(prompt) <= len(until)):
                raise UserError(
                    f"{where}: the chat template renders message {number + 1} otherwise once more messages follow, so "
                    "what is learned cannot be told: mark replies with {% generation %} in a template of your own "
                    "(data.chat_template), or split the conversation"
                )
            replies.append((len(prompt), len(until)))
        return replies

    def _render(
        self,
        where: str,
        template: str,
        messages: list[dict[str, Any]],
        tools: Any,
        prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **{**self.tokenizer.special_tokens_map, **self.arguments},
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"{where}: the chat template refuses this conversation ({' '.join(str(error).split())}): fix or remove "
                "it"
            ) from error
        return texts[0], spans[0] if marks else []
