"""Rows of corpus files → documents as text, in Arrow."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from wmtp_core.errors import UserError
from wmtp_train.data.conversations import messages_of
from wmtp_train.data.files import describe, read_rows

TEXT_SCHEMA = pa.schema(
    {
        "prompt": pa.string(),  # no target; "" where the row has none
        "text": pa.string(),
        "rejected": pa.bool_(),  # no target in the whole document
        "noise": pa.list_(pa.struct({"start": pa.int32(), "end": pa.int32(), "kind": pa.string()})),  # characters
        "reward": pa.float32(),  # null where unknown
        "pair": pa.int32(),  # +p chosen, -p rejected, 0 neither
        "conversation": pa.string(),  # JSON of where, messages and tools; null where the row is none
        "input_ids": pa.list_(pa.int32()),  # null where the row is not tokens already
        "labels": pa.list_(pa.int32()),
    }
)
_LARGEST_REWARD = 3.4e38  # of a float32
# The forms of a row: what each must have, and what it may have. A file has rows of one line of them.
_FORMS: tuple[dict[tuple[str, ...], tuple[str, ...]], ...] = (
    {("text",): (), ("prompt", "completion"): (), ("chosen", "rejected"): ("prompt",)},
    {("messages",): ("tools",), ("conversations",): ("tools",), ("instruction", "output"): ("input", "system")},
    {("input_ids",): ("labels",)},
)
_ALWAYS = ("reward", "noise")
COLUMNS = tuple(
    dict.fromkeys([*(name for forms in _FORMS for must, may in forms.items() for name in (*must, *may)), *_ALWAYS])
)


def read_texts(paths: list[Path], columns: Mapping[str, str] | None = None) -> Iterator[pa.Table]:
    """Return tables of `TEXT_SCHEMA`, one row a document, in corpus order, at most 1000 rows each.

    A row of `chosen` and `rejected` gives two documents, one after the other, each with the row's reward. Empty texts,
    empty completions and pairs with an empty half are dropped.

    Args:
        paths: of corpus files.
        columns: from our names of columns to the files'; then no others are read. None or empty: ours are theirs.

    Raises:
        UserError: something is wrong with a row, which the message names by file and line; or no document remains.
    """
    documents = _documents(paths, columns or {})
    block = list(islice(documents, 1000))
    if not block:
        raise UserError(f"corpus {describe(paths)}: no document in it: every text, completion or pair is empty")
    while block:
        yield pa.Table.from_pylist(block, TEXT_SCHEMA)
        block = list(islice(documents, 1000))


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UserError unless every key is a name that a row may have here."""
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"data.columns: there is no {name!r} to take a column for: use {', '.join(COLUMNS)}")


def _documents(paths: list[Path], columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    names = columns or {name: name for name in COLUMNS}
    pairs = 0
    for path in paths:
        first: tuple[str, ...] | None = None
        for where, row in read_rows(path, names.values()):
            mine = {ours: row[theirs] for ours, theirs in names.items() if row.get(theirs) is not None}
            form, kind = _form(where, mine, row)
            if first is not None and kind != _kind(first):
                raise UserError(
                    f"{where}: a row of {_quoted(form)} in a file whose first is of {_quoted(first)}: put them into "
                    "files of their own"
                )
            first = first or form
            documents = _split_row(where, mine, form)
            if not all(_has_content(document) for document in documents):
                continue
            if len(documents) == 2:
                pairs += 1
                for document, sign in zip(documents, (1, -1), strict=True):
                    document["pair"] = sign * pairs
            yield from documents


def _has_content(document: dict[str, Any]) -> bool:
    return bool(document["text"] or document.get("conversation") or document.get("input_ids"))


def _kind(form: tuple[str, ...]) -> int:
    return next(kind for kind, forms in enumerate(_FORMS) if form in forms)


def _quoted(names: tuple[str, ...]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _form(where: str, row: dict[str, Any], found: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return which form a row is of, and its line in `_FORMS`.

    Args:
        where: the row is.
        row: what it holds, null columns left out.
        found: the row as it came, for the message.
    """
    complete = [form for forms in _FORMS for form in forms if all(name in row for name in form)]
    if not complete:
        null = next((name for name in COLUMNS if name in found and found[name] is None), None)
        if null is not None:
            raise UserError(f"{where}: `{null}` is null, and nothing else holds a document: fill it in or remove it")
        raise UserError(
            f"{where}: a row holds `text`, or `prompt` and `completion`, or `chosen` and `rejected`, or `messages`, "
            "`conversations`, `instruction` and `output`, or `input_ids`; this one has the columns "
            f"{sorted(found)}: rename, add, or map them with data.columns"
        )
    kinds = {_kind(form) for form in complete}
    if len(kinds) > 1:
        both = ", and ".join(_quoted(form) for form in complete)
        raise UserError(f"{where}: a row of {both}: choose one with data.columns, like {{{complete[-1][0]}: …}}")
    return complete[0], kinds.pop()


def _split_row(where: str, row: dict[str, Any], form: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the one or two documents of a row of that form."""
    if _kind(form) == 0:
        prompt = "prompt" if form != ("text",) else ""
        texts = {("text",): ("text",), ("prompt", "completion"): ("completion",)}.get(form, form)
        return [
            _document(where, row, _string(where, row, text), _string(where, row, prompt), text == "rejected")
            for text in texts
        ]
    document = _document(where, row)
    if form == ("input_ids",):
        return [document | _tokens(where, row)]
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    said = {"where": where, "messages": messages_of(where, row), "tools": tools or None}
    return [document | {"conversation": json.dumps(said)}]


def _document(
    where: str, row: dict[str, Any], text: str = "", prompt: str = "", rejected: bool = False
) -> dict[str, Any]:
    noise, reward = _noise(where, row), _reward(where, row)
    return {"prompt": prompt, "text": text, "rejected": rejected, "noise": noise, "reward": reward, "pair": 0}


def _tokens(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a document that is tokens already."""
    ids = row["input_ids"]
    labels = row.get("labels", ids)
    for name, values in (("input_ids", ids), ("labels", labels)):
        numbers = isinstance(values, list) and all(type(value) is int for value in values)
        if not numbers or (name == "input_ids" and min(values, default=0) < 0):
            raise UserError(f"{where}: `{name}` is not a list of token ids: fix it")
    if len(labels) != len(ids) or any(label not in (-100, token) for label, token in zip(labels, ids, strict=True)):
        raise UserError(
            f"{where}: `labels` is not `input_ids` with -100 where nothing is learned: labels are not shifted here"
        )
    if ids and not any(label != -100 for label in labels[1:]):
        raise UserError(f"{where}: no token of this row is learned: all `labels` after the first are -100; remove it")
    return {"input_ids": ids, "labels": labels}


def _string(where: str, row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` is a {type(value).__name__}: make it a string")
    if re.search("[\ud800-\udfff]", value):
        raise UserError(f"{where}: `{name}` holds half of a surrogate pair (\\ud800 to \\udfff): remove it")
    return value


def _noise(where: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return spans of `[start, end, kind]`, or of the struct with these fields that parquet needs."""
    spans, length = row.get("noise", []), len(row.get("text", ""))
    if not isinstance(spans, list):
        raise UserError(f"{where}: noise {spans!r} is not a list of [start, end, kind]: fix it")
    noise = []
    for span in spans:
        match span:
            case [int(start), int(end), str(kind)] | {"start": int(start), "end": int(end), "kind": str(kind)}:
                noise.append({"start": start, "end": end, "kind": kind})
            case _:
                raise UserError(f"{where}: noise span {span!r} is not [start, end, kind]: fix it")
        if not 0 <= start <= end <= length:
            raise UserError(f"{where}: noise span {span} lies outside the {length} characters of `text`: fix it")
    return noise


def _reward(where: str, row: dict[str, Any]) -> float | None:
    reward = row.get("reward")
    if reward is None:
        return None
    if isinstance(reward, int | float) and abs(reward) <= _LARGEST_REWARD:
        return float(reward)
    raise UserError(
        f"{where}: reward {repr(reward)[:60]} is not a float32 number: fix it, or leave it out where unknown"
    )
