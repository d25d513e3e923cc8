"""Packed rows → tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from wmtp_models.trunk.packing_layout import DocumentBounds
from wmtp_train.data.packed.prepared import PreparedData


@dataclass
class Batch:
    """B packed rows of S tokens; everything that a row's documents know is spread over their tokens."""

    input_ids: Tensor
    """int64 `[B, S]`."""
    labels: Tensor
    """int64 `[B, S]`, not shifted, −100 where there is no target."""
    position_ids: Tensor
    """int64 `[B, S]`, from 0 in each piece of a document."""
    document_ids: Tensor
    """int64 `[B, S]`, 0, 1, 2, … by piece in each row: only equality has a meaning."""
    row_ids: Tensor
    """int64 `[B]`, which row of the source each row is; −1 for the padding of an evaluation."""
    reference_ce: Tensor | None = None
    """float32 `[B, S]`, nats, by target position."""
    token_labels: Tensor | None = None
    """int64 `[B, S]`, 0 unlabeled, k for the source's `label_names[k − 1]`: the corpus's own notes on its tokens."""
    rewards: Tensor | None = None
    """float32 `[B, S]`, NaN where unknown."""
    pairs: Tensor | None = None
    """int64 `[B, S]`, +p chosen, −p rejected, 0 neither."""
    attention_mask: Tensor | None = None
    """int64 `[B, S]`, 0 in the padding, which has no labels either; None: there is none."""
    bounds: DocumentBounds | None = None
    """Where `position_ids` restart, told on the host, which need not ask a device then; None: it has to."""

    def to(self, device: torch.device | str) -> "Batch":
        """Copy it to a device; from pinned memory it does not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy it to page-locked memory; torch's DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        if self.bounds is not None:
            moved["bounds"] = replace(self.bounds, cu_seq_lens=function(self.bounds.cu_seq_lens))
        return replace(self, **moved)


def collate(rows: pa.Table, row_ids: np.ndarray, reference_ce: pa.Table | None = None) -> Batch:
    """Return the batch of B rows in the columns of `packing.pack`, with their scores if there are any."""
    flat = {name: pc.list_flatten(rows[name]).to_numpy() for name in rows.column_names}
    lengths = flat["document_lengths"]  # [pieces of all rows], a row's pieces sum to S

    def per_token(values: np.ndarray, dtype: type = np.int64) -> Tensor:
        return torch.from_numpy(values.astype(dtype).reshape(len(rows), -1))

    def per_piece(values: np.ndarray, dtype: type = np.int64) -> Tensor:
        return per_token(np.repeat(values, lengths), dtype)

    pieces = per_piece(np.arange(len(lengths)))
    return Batch(
        input_ids=per_token(flat["input_ids"]),
        labels=per_token(flat["labels"]),
        position_ids=per_token(np.arange(len(flat["input_ids"]))) - per_piece(np.cumsum(lengths) - lengths),
        document_ids=pieces - pieces[:, :1],
        row_ids=torch.from_numpy(np.array(row_ids, dtype=np.int64)),
        reference_ce=None
        if reference_ce is None
        else per_token(pc.list_flatten(reference_ce["reference_ce"]).to_numpy(), np.float32),
        token_labels=per_token(flat["noise"]) if "noise" in flat else None,
        rewards=per_piece(flat["rewards"], np.float32) if "rewards" in flat else None,
        pairs=per_piece(flat["pairs"]) if "pairs" in flat else None,
        attention_mask=per_piece(flat["document_ids"] >= 0),
        bounds=DocumentBounds(
            torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), int(lengths.max())
        ),
    )


class PackedRows(torch.utils.data.Dataset):
    """Prepared data and its scores, asked for whole batches: `packed_rows[[3, 1, 4]]` is a Batch of three rows."""

    def __init__(self, prepared: PreparedData, scores: datasets.Dataset | None = None) -> None:
        self.rows = prepared.rows.with_format("arrow")
        self.scores = None if scores is None else scores.with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row_ids: list[int] | np.ndarray) -> Batch:
        return collate(self.rows[row_ids], np.asarray(row_ids), None if self.scores is None else self.scores[row_ids])
