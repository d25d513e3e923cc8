"""drafts.py: the most probable tokens, chunk by chunk, and the drafts that a decoder would keep."""

import numpy as np
import pytest
import torch

from wmtp_core import accepted_drafts, drafts, linear_argmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 10])
def test_it_is_the_argmax_of_the_logits_a_chunk_at_a_time(rows, dtype, monkeypatch, witness):
    monkeypatch.setattr(drafts, "rows_per_chunk", lambda weight: 3)
    draw = torch.Generator().manual_seed(rows)
    hidden, weight = torch.randn(rows, 8, generator=draw).to(dtype), torch.randn(70, 8, generator=draw).to(dtype)
    with witness(columns=70) as seen:
        best = linear_argmax(hidden, weight)
    assert best.tolist() == [int(np.argmax((weight.float() @ row.float()).to(dtype).float())) for row in hidden]
    assert (best.dtype, best.shape) == (torch.int64, (rows,))
    assert seen.most_alive <= 2 * 3 * 70 * hidden.element_size()  # one chunk, and the next being made


def kept_by_the_definition(predicted):
    """In plain loops: head h's draft at t against what head 0 says at t+h, as long as all before it held."""
    rows, length, horizon = predicted.shape
    kept = np.zeros(predicted.shape, dtype=bool)
    for b, t in np.ndindex(rows, length):
        for h in range(horizon):
            if h and (t + h >= length or predicted[b, t, h] != predicted[b, t + h, 0]):
                break
            kept[b, t, h] = True
    return kept


@pytest.mark.parametrize("horizon", [1, 2, 4, 7])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_drafts_are_kept_as_long_as_head_0_agrees(horizon, tokens):
    predicted = torch.randint(tokens, (3, 6, horizon), generator=torch.Generator().manual_seed(horizon))
    kept = accepted_drafts(predicted)
    assert kept.tolist() == kept_by_the_definition(predicted.numpy()).tolist()
    assert kept.dtype == torch.bool


def test_a_draft_behind_a_wrong_one_is_lost_though_it_is_right():
    predicted = torch.tensor([[[1, 9, 3], [2, 0, 0], [3, 0, 0]]])  # head 0 says 1, 2, 3; head 1 says 9, head 2 says 3
    assert accepted_drafts(predicted)[0, 0].tolist() == [True, False, False]
    predicted[0, 0, 1] = 2
    assert accepted_drafts(predicted)[0, 0].tolist() == [True, True, True]
