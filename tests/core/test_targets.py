"""targets.py: what each head predicts, and where."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_core import UserError, mtp_targets, shift_to_heads


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 3),
    length=st.integers(1, 12),
    horizon=st.integers(1, 6),
    masked=st.booleans(),
    packed=st.booleans(),
)
def test_targets_equal_the_definition(oracle, seed, rows, length, horizon, masked, packed):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((rows, length)) < 0.3, -100, rng.integers(0, 9, (rows, length)))
    mask = rng.integers(0, 2, (rows, length)) if masked else None
    documents = (rng.random((rows, length)) < 0.3).cumsum(axis=1) if packed else None

    expected_targets, expected_valid = oracle.targets(labels, horizon, mask, documents)
    as_tensor = [None if x is None else torch.tensor(x) for x in (labels, mask, documents)]
    targets, valid = mtp_targets(as_tensor[0], horizon, *as_tensor[1:])

    assert targets.dtype == torch.int64
    assert valid.dtype == torch.bool
    np.testing.assert_array_equal(targets.numpy(), expected_targets)
    np.testing.assert_array_equal(valid.numpy(), expected_valid)


def test_a_worked_example():
    """Two documents, `1 2 EOS` and `4 5`: the EOS is a target of the first, nothing of the second is."""
    targets, valid = mtp_targets(
        torch.tensor([[1, 2, 9, 4, 5]]), horizon=2, document_ids=torch.tensor([[0, 0, 0, 1, 1]])
    )
    assert targets[0].tolist() == [[2, 9], [9, -100], [-100, -100], [5, -100], [-100, -100]]
    assert torch.equal(valid, targets != -100)


def test_a_mask_hides_the_target_and_not_the_position_that_predicts_it():
    _, valid = mtp_targets(torch.tensor([[1, 2, 3]]), horizon=1, attention_mask=torch.tensor([[False, True, True]]))
    assert valid[0, :, 0].tolist() == [True, True, False]


def test_another_ignore_index():
    targets, valid = mtp_targets(torch.tensor([[3, 0, 7]]), horizon=1, ignore_index=0)
    assert targets[0, :, 0].tolist() == [0, 7, 0]
    assert valid[0, :, 0].tolist() == [False, True, False]


def test_inputs_are_left_alone():
    labels, mask, documents = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 0, 1]]), torch.tensor([[0, 0, 1]])
    mtp_targets(labels, 3, mask, documents)
    assert (labels.tolist(), mask.tolist(), documents.tolist()) == ([[1, 2, 3]], [[1, 0, 1]], [[0, 0, 1]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32, torch.bfloat16, torch.bool])
def test_shift_to_heads_indexes_by_target_position_and_keeps_the_dtype(dtype):
    values = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]).to(dtype)
    shifted = shift_to_heads(values, horizon=5)
    assert shifted.dtype == dtype
    assert shifted.shape == (2, 4, 5)
    for b, t, h in np.ndindex(2, 4, 5):
        assert shifted[b, t, h] == (values[b, t + h + 1] if t + h + 1 < 4 else 0)


def test_shift_to_heads_fills_beyond_the_row():
    assert shift_to_heads(torch.tensor([[1.0, 2.0]]), 2, fill=-7).tolist() == [[[2, -7], [-7, -7]]]


@pytest.mark.parametrize(
    ("labels", "horizon", "named"),
    [(torch.tensor([1, 2]), 2, r"\[2\]"), (torch.tensor([[1, 2]]), 0, "horizon is 0")],
)
def test_what_does_not_fit_is_refused(labels, horizon, named):
    with pytest.raises(UserError, match=named) as raised:
        mtp_targets(labels, horizon)
    assert "\n" not in str(raised.value)
