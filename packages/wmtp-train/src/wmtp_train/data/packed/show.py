"""Rows as a person reads them, with what is learned of them marked."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerFast

from wmtp_train.data.packed.prepared import PreparedData

BEGIN, END = "⟦", "⟧"
"""Around the tokens that are targets."""


def show_rows(prepared: PreparedData, tokenizer: PreTrainedTokenizerFast, count: int) -> Iterator[str]:
    """Yield evenly spaced rows as text, each document on lines of its own, and what is learned between marks.

    A character whose bytes lie in two tokens, of which one alone is learned, cannot be shown as such.
    """
    rows = prepared.rows.with_format("numpy")
    for number in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int).tolist():
        row = rows[number]
        ends = np.cumsum(row["document_lengths"])
        pieces = []
        for document, start, end in zip(row["document_ids"], [0, *ends], ends, strict=False):
            if document >= 0:
                text = mark_learned(row["input_ids"][start:end], row["labels"][start:end] != -100, tokenizer)
                pieces.append(f"document {document}: {text}")
        yield f"--- row {number}\n" + "\n".join(pieces)


def mark_learned(ids: np.ndarray, learned: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the text of tokens `[n]` with the runs of those that are learned, bool `[n]`, between marks."""
    text = ""
    for counts, run in groupby(zip(learned.tolist(), ids.tolist(), strict=True), key=lambda pair: pair[0]):
        decoded = tokenizer.decode([token for _, token in run], clean_up_tokenization_spaces=False)
        text += f"{BEGIN}{decoded}{END}" if counts else decoded
    return text
