"""Documents as tokens → rows of S tokens, and back."""

import hashlib
from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wmtp_core.errors import UserError
from wmtp_train.data.packed.order import PACKING_STREAM, permutation

_FORMAT = 1  # raise it whenever the same documents, seed and length give other rows


def packing_fingerprint(sequence_length: int, seed: int, packing: bool = True) -> str:
    """Return SHA-256 (hex) of all that decides how documents become rows. Raise UserError below 2 tokens a row."""
    if sequence_length < 2:
        raise UserError(f"sequence_length {sequence_length}: a row shorter than 2 tokens has no target: give 2 or more")
    unpacked = "" if packing else " unpacked"
    return hashlib.sha256(f"{_FORMAT} {sequence_length} {seed}{unpacked}".encode()).hexdigest()


def pack(
    documents: datasets.Dataset,
    sequence_length: int,
    seed: int,
    eos_token_id: int,
    block_rows: int = 4096,
    packing: bool = True,
) -> Iterator[pa.Table]:
    """Return the documents (columns of `documents.tokenise`), shuffled by the seed, as rows of S tokens.

    They stand end to end, and rows are cut from that; adjacent documents of one pair stay together. Without `packing`
    each row is one document, cut to S tokens. The tables hold `block_rows` rows each (memory, not meaning), with
    `input_ids` and `labels` list<int32>[S], `document_lengths` and `document_ids` list<int32>[pieces] and, where the
    documents have them, `noise` list<int8>[S], `rewards` list<float32>[pieces] and `pairs` list<int32>[pieces].
    A piece is what one row holds of one document; the padding that ends a row is a piece with document -1.
    """
    assert sequence_length >= 2, "packing_fingerprint refuses it"
    columns = documents.with_format("arrow")[:]
    lengths = pc.list_value_length(columns["input_ids"]).to_numpy().astype(np.int64)
    assert lengths.min() > 0, "every document ends in EOS"
    order = _shuffle(columns["pair"].to_numpy(), seed)
    optional = {"noise", "learned"} & set(columns.column_names)
    optional |= {"rewards"} if columns["reward"].null_count < len(order) else set()
    optional |= {"pairs"} if pc.any(pc.not_equal(columns["pair"], 0)).as_py() else set()

    if not packing:
        for start in range(0, len(order), block_rows):
            yield _one_a_row(documents, order[start : start + block_rows], sequence_length, eos_token_id, optional)
        return
    ends = lengths[order].cumsum()
    for start in range(0, ends[-1], block_rows * sequence_length):
        stop = min(start + block_rows * sequence_length, ends[-1])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        here = order[first : last + 1]
        begins = ends[first : last + 1] - lengths[here] - start  # negative where a document began in the last block
        yield _cut(documents, here, begins, stop - start, sequence_length, eos_token_id, optional)


def _shuffle(pairs: np.ndarray, seed: int) -> np.ndarray:
    """Return the order of the documents, int64 [N]; a rejected text (pair < 0) follows its chosen one."""
    heads = np.flatnonzero(pairs >= 0)
    heads = heads[permutation(len(heads), seed, PACKING_STREAM)]
    order = np.stack([heads, heads + 1], axis=1)  # the second one is there for pairs only
    return order[np.stack([pairs[heads] >= 0, pairs[heads] > 0], axis=1)]


def _cut(
    documents: datasets.Dataset,
    here: np.ndarray,
    begins: np.ndarray,
    num_tokens: int,
    sequence_length: int,
    eos_token_id: int,
    optional: set[str],
) -> pa.Table:
    """Return the rows of one block: `num_tokens` tokens of the documents `here`, whose first tokens lie at `begins`."""
    table = documents.with_format("arrow")[here]
    padding = -num_tokens % sequence_length
    total = num_tokens + padding

    def tokens(name: str, pad: int) -> np.ndarray:
        flat = pc.list_flatten(table[name]).to_numpy()[-begins[0] :][:num_tokens]
        return np.pad(flat, (0, padding), constant_values=pad)  # [rows * S]

    starts = np.append(begins.clip(0), num_tokens)  # [documents + 1], the last one is the padding's
    cuts = np.union1d(starts[starts < total], np.arange(0, total, sequence_length))  # [pieces]
    owner = np.searchsorted(starts, cuts, side="right") - 1
    per_token = {"input_ids": tokens("input_ids", eos_token_id)}
    per_token |= {name: tokens(name, 0) for name in ("noise", "learned") if name in optional}
    return _to_rows(table, here, per_token, begins, cuts, owner, sequence_length, optional)


def _one_a_row(
    documents: datasets.Dataset, here: np.ndarray, sequence_length: int, eos_token_id: int, optional: set[str]
) -> pa.Table:
    """Return a row for each of the documents `here`."""
    table = documents.with_format("arrow")[here]
    lengths = pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64)
    kept = np.minimum(lengths, sequence_length)
    slots = np.arange(sequence_length)
    inside = slots < kept[:, None]  # [rows, S]
    taken = ((lengths.cumsum() - lengths)[:, None] + slots)[inside]

    def tokens(name: str, pad: int) -> np.ndarray:
        padded = np.full(inside.shape, pad, dtype=np.int64)
        padded[inside] = pc.list_flatten(table[name]).to_numpy()[taken]
        return padded.ravel()

    begins = np.arange(len(here)) * sequence_length
    cuts = np.union1d(begins, (begins + kept)[kept < sequence_length])
    owner = np.where(cuts % sequence_length == 0, cuts // sequence_length, len(here))
    per_token = {"input_ids": tokens("input_ids", eos_token_id)}
    per_token |= {name: tokens(name, 0) for name in ("noise", "learned") if name in optional}
    return _to_rows(table, here, per_token, begins, cuts, owner, sequence_length, optional)


def _to_rows(
    table: pa.Table,
    here: np.ndarray,
    per_token: dict[str, np.ndarray],
    begins: np.ndarray,
    cuts: np.ndarray,
    owner: np.ndarray,
    sequence_length: int,
    optional: set[str],
) -> pa.Table:
    """Return the columns of some rows.

    Args:
        table: of their documents.
        here: int64 `[documents]`, which these are.
        per_token: the token columns, each `[rows * S]`.
        begins: int64 `[documents]`, where among these each document's first token lies.
        cuts: int64 `[pieces]`, where pieces begin.
        owner: int64 `[pieces]`, which of the documents each piece is of; their number: it is padding.
        sequence_length: S.
        optional: the names of further columns.
    """
    input_ids = per_token["input_ids"]
    total = len(input_ids)
    piece_lengths = np.diff(cuts, append=total)
    row_offsets = np.arange(0, total + 1, sequence_length)
    piece_offsets = np.searchsorted(cuts, row_offsets)  # [rows + 1]
    unmasked_from = np.append(begins + table["masked"].to_numpy(), total)  # no target in the padding
    masked = np.arange(total) < np.repeat(unmasked_from[owner], piece_lengths)
    if "learned" in optional:
        masked |= per_token["learned"] == 0

    def per_piece(name: str, unknown: float) -> np.ndarray:
        return np.append(table[name].to_numpy(), unknown)[owner]

    columns = {
        "input_ids": _lists(row_offsets, input_ids, pa.int32()),
        "labels": _lists(row_offsets, np.where(masked, -100, input_ids), pa.int32()),
        "document_lengths": _lists(piece_offsets, piece_lengths, pa.int32()),
        "document_ids": _lists(piece_offsets, np.append(here, -1)[owner], pa.int32()),
    }
    if "noise" in optional:
        columns["noise"] = _lists(row_offsets, per_token["noise"], pa.int8())
    if "rewards" in optional:
        columns["rewards"] = _lists(piece_offsets, per_piece("reward", np.nan), pa.float32())
    if "pairs" in optional:
        columns["pairs"] = _lists(piece_offsets, per_piece("pair", 0), pa.int32())
    return pa.table(columns)


def _lists(offsets: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.astype(kind.to_pandas_dtype())))


def unpack(rows: datasets.Dataset) -> dict[str, list[np.ndarray]]:
    """Return the documents in corpus order: of each token column its values per document, without the padding."""
    table = rows.with_format("arrow")[:]
    flat = {name: pc.list_flatten(table[name]).to_numpy() for name in table.column_names}
    owner = np.repeat(flat["document_ids"], flat["document_lengths"])
    order = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :]  # the pieces of a document are in order
    ends = np.bincount(owner[owner >= 0]).cumsum()[:-1]
    return {name: np.split(flat[name][order], ends) for name in ("input_ids", "labels", "noise") if name in flat}
