"""Token files as Megatron-LM writes them: `NAME.bin` holds the tokens, `NAME.idx` where each document lies."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_core.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_HEADER = len(_MAGIC) + 8 + 1 + 8 + 8  # magic, version, dtype, sequences, documents


def read_megatron(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return (where, {"input_ids": ids}) for each document of a `.bin` file.

    A document is a run of sequences, as the index says.

    Raises:
        UserError: the index is missing, of another format, or does not fit the tokens.
    """
    sizes, pointers, documents, dtype = _read_index(path)
    tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
    for number, (first, last) in enumerate(pairwise(documents), start=1):
        pieces = [
            tokens[start : start + size]
            for start, size in zip(pointers[first:last] // dtype.itemsize, sizes[first:last], strict=True)
        ]
        if pieces:
            yield f"{path}: document {number}", {"input_ids": np.concatenate(pieces).astype(np.int64).tolist()}


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
    """Return sizes (int32) and byte offsets (int64) of the sequences, the first of each document, and the dtype."""
    index = path.with_suffix(".idx")
    again = f"write {path.name} and {index.name} again, together"
    try:
        content = index.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: {index.name} is missing beside it: put it there") from error
    if not content.startswith(_MAGIC) or len(content) < _HEADER:
        raise UserError(f"{index}: not an index of Megatron-LM: {again}")
    code = content[len(_MAGIC) + 8]
    if code not in _DTYPES:
        raise UserError(f"{index}: tokens of the unknown type {code}: {again}")
    sequences, ends = (int(n) for n in np.frombuffer(content, np.int64, 2, len(_MAGIC) + 9))
    if min(sequences, ends) < 0 or len(content) != _HEADER + 12 * sequences + 8 * ends:
        raise UserError(f"{index}: cut off or damaged: {again}")
    sizes = np.frombuffer(content, np.int32, sequences, _HEADER)
    pointers = np.frombuffer(content, np.int64, sequences, _HEADER + 4 * sequences)
    documents = np.frombuffer(content, np.int64, ends, _HEADER + 12 * sequences)
    dtype = np.dtype(_DTYPES[code])
    inside = (pointers >= 0).all() and (sizes >= 0).all() and (np.diff(documents, prepend=0) >= 0).all()
    if not inside or documents[-1:].max(initial=0) > sequences or (documents[:1] != 0).any():
        raise UserError(f"{index}: cut off or damaged: {again}")
    if (pointers + sizes * dtype.itemsize).max(initial=0) != path.stat().st_size or (pointers % dtype.itemsize).any():
        raise UserError(f"{index}: it does not fit {path.name}, which has {path.stat().st_size} bytes: {again}")
    return sizes, pointers, documents, dtype
