"""Rows of corpus files → documents as text, in Arrow."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from wmtp_core.errors import UserError
from wmtp_train.data.files import describe, read_rows

TEXT_SCHEMA = pa.schema(
    {
        "prompt": pa.string(),  # no target; "" where the row has none
        "text": pa.string(),
        "rejected": pa.bool_(),  # no target in the whole document
        "noise": pa.list_(pa.struct({"start": pa.int32(), "end": pa.int32(), "kind": pa.string()})),  # characters
        "reward": pa.float32(),  # null where unknown
        "pair": pa.int32(),  # +p chosen, -p rejected, 0 neither
    }
)
_LARGEST_REWARD = 3.4e38  # of a float32
_COLUMNS = ("text", "prompt", "completion", "chosen", "rejected", "noise", "reward")


def read_texts(paths: list[Path]) -> Iterator[pa.Table]:
    """Return tables of `TEXT_SCHEMA`, one row a document, in corpus order, at most 1000 rows each.

    A row of `chosen` and `rejected` gives two documents, one after the other, each with the row's reward. Empty texts,
    empty completions and pairs with an empty half are dropped.

    Raises:
        UserError: something is wrong with a row, which the message names by file and line; or no document remains.
    """
    documents = _documents(paths)
    block = list(islice(documents, 1000))
    if not block:
        raise UserError(f"corpus {describe(paths)}: no document in it: every text, completion or pair is empty")
    while block:
        yield pa.Table.from_pylist(block, TEXT_SCHEMA)
        block = list(islice(documents, 1000))


def _documents(paths: list[Path]) -> Iterator[dict[str, Any]]:
    pairs = 0
    for path in paths:
        for where, row in read_rows(path, _COLUMNS):
            documents = _split_row(where, {name: row[name] for name in _COLUMNS if row.get(name) is not None}, row)
            if not all(document["text"] for document in documents):
                continue
            if len(documents) == 2:
                pairs += 1
                for document, sign in zip(documents, (1, -1), strict=True):
                    document["pair"] = sign * pairs
            yield from documents


def _split_row(where: str, row: dict[str, Any], columns: Iterable[str]) -> list[dict[str, Any]]:
    """Return the one or two documents of a row whose null columns are gone.

    `columns` are the names that it came with.
    """
    if "text" in row:
        parts = [("", "text")]
    elif "prompt" in row and "completion" in row:
        parts = [("prompt", "completion")]
    elif "chosen" in row and "rejected" in row:
        parts = [("prompt", "chosen"), ("prompt", "rejected")]
    else:
        raise UserError(
            f"{where}: a row holds `text`, or `prompt` and `completion`, or `chosen` and `rejected`; "
            f"this one has the columns {sorted(columns)}: rename or add"
        )
    return [
        {
            "prompt": _string(where, row, prompt),
            "text": _string(where, row, text),
            "rejected": text == "rejected",
            "noise": _noise(where, row),
            "reward": _reward(where, row),
            "pair": 0,
        }
        for prompt, text in parts
    ]


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
