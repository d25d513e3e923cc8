"""A sample of held-out text, each token annotated with what each head keeps: for people to look at."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wmtp_train.data.batch import Batch
from wmtp_train.step import Step


def annotate_sample(
    step: Step,
    batch: Batch,
    number: int,
    tokenizer: PreTrainedTokenizerBase,
    label_names: tuple[str, ...],
) -> dict[str, Any]:
    """Annotate the row of a batch that shows best what selection does: unlabeled and variously labeled text.

    Returns:
        JSON: `tokens` (text of each), `noise` (the label of each, "" where there is none), `documents` (which piece
        each token belongs to), and `weights`, for each token the H weights of the predictions of *it* (head h made its
        prediction h+1 tokens before), null where there was no such prediction.
    """
    _, inputs, weights = step.evaluate(batch, number)
    assert inputs.token_labels is not None
    row = int(_variety(batch).argmax())
    names = ["", *label_names]
    return {
        "tokens": [tokenizer.decode([token]) for token in batch.input_ids[row].tolist()],
        "noise": [names[label] for label in inputs.token_labels[row].tolist()],
        "documents": batch.document_ids[row].tolist(),
        "weights": _by_target(weights[row], inputs.valid[row]),
    }


def pick_sample(batches: Iterable[Batch]) -> Batch:
    """Return the batch whose best row for `annotate_sample` is the best of all, the first of equals."""
    return max(batches, key=lambda batch: float(_variety(batch).max()))


def _variety(batch: Batch) -> Tensor:
    """Return float32 `[B]`: how many labels each row holds, and how near to 40 % their share is."""
    if batch.token_labels is None:
        return torch.zeros(len(batch.row_ids))
    labels = torch.tensor([len(set(row) - {0}) for row in batch.token_labels.tolist()], device=batch.row_ids.device)
    return labels.clamp(max=3) - ((batch.token_labels != 0).float().mean(dim=1) - 0.4).abs()


def _by_target(weights: Tensor, valid: Tensor) -> list[list[float | None]]:
    """Turn `[S, H]` by predicting position into one list of H per target position."""
    length, horizon = weights.shape
    known = weights.masked_fill(~valid, -1).tolist()
    known = [[w if w >= 0 else None for w in row] for row in known]
    return [[known[p - h - 1][h] if p > h else None for h in range(horizon)] for p in range(length)]
