"""A passage of held-out text, marked by what each head keeps: for people to look at."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wmtp_train.data.batch import Batch
from wmtp_train.step import Objective


@torch.no_grad()
def annotate_sample(
    objective: Objective,
    batch: Batch,
    step: int,
    tokenizer: PreTrainedTokenizerBase,
    kinds: list[str],
) -> dict[str, Any]:
    """The row of the batch that shows best what selection does: clean text and several kinds of noise side by side.

    Returns:
        JSON: `tokens` (text of each), `noise` (the kind of each, "" where clean), `documents` (which piece each token
        belongs to), and `weights`, for each token the H weights of the predictions of *it* (head h made its
        prediction h+1 tokens before), null where there was no such prediction.
    """
    _, signals = objective.forward(batch, step)
    noise = torch.zeros_like(batch.input_ids) if batch.noise is None else batch.noise
    weights = objective.weighting.compute_head_weights(replace(signals, noise=noise))
    row = int(_variety(batch).argmax())
    names = ["", *kinds]
    return {
        "tokens": [tokenizer.decode([token]) for token in batch.input_ids[row].tolist()],
        "noise": [names[kind] for kind in noise[row].tolist()],
        "documents": batch.document_ids[row].tolist(),
        "weights": _by_target(weights[row], signals.valid[row]),
    }


def pick_sample(batches: Iterable[Batch]) -> Batch:
    """The batch whose best row for `annotate_sample` is the best of all, the first of equals."""
    return max(batches, key=lambda batch: float(_variety(batch).max()))


def _variety(batch: Batch) -> Tensor:
    """float32 `[B]`: how many kinds of noise each row holds, and how near to 40 % their share is."""
    if batch.noise is None:
        return torch.zeros(len(batch.row_ids))
    kinds = torch.tensor([len(set(row) - {0}) for row in batch.noise.tolist()], device=batch.noise.device)
    return kinds.clamp(max=3) - ((batch.noise != 0).float().mean(dim=1) - 0.4).abs()


def _by_target(weights: Tensor, valid: Tensor) -> list[list[float | None]]:
    """`[S, H]` by predicting position → one list of H per target position."""
    length, horizon = weights.shape
    known = weights.masked_fill(~valid, -1).tolist()
    known = [[w if w >= 0 else None for w in row] for row in known]
    return [[known[p - h - 1][h] if p > h else None for h in range(horizon)] for p in range(length)]
