"""The top k by counting is the top k by sorting. test_selection.py asks two ranks, and test_splits.py four."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp_core.distributed_top_k import topk_mask_over_ranks
from wmtp_core.selection import num_selected, topk_mask

ODD = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38, 1.0, 1.0000001, -1.0]


def by_counting(scores: Tensor, valid: Tensor, k_percent: float) -> Tensor:
    return topk_mask_over_ranks(scores, valid, lambda count: num_selected(count, k_percent), None)


@given(
    values=st.lists(st.sampled_from(ODD) | st.floats(width=32), min_size=1, max_size=40),
    density=st.floats(0, 1),
    k_percent=st.sampled_from([1e-6, 0.1, 0.5, 0.6, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_top_k_by_sorting(values: list[float], density: float, k_percent: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.tensor(values, dtype=torch.float32)
    rows = torch.stack([scores[torch.randperm(len(scores), generator=draw)] for _ in range(3)])
    valid = torch.rand(rows.shape, generator=draw) < density
    assert torch.equal(by_counting(rows, valid, k_percent), topk_mask(rows, valid, k_percent))


@pytest.mark.parametrize("levels", [3, 10**6])
def test_many_scores(levels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(levels, (3, 20_000), generator=draw) / 7.0 - 50
    valid = torch.rand(scores.shape, generator=draw) < 0.9
    assert torch.equal(by_counting(scores, valid, 0.6), topk_mask(scores, valid, 0.6))


def test_a_not_a_number_of_either_sign_is_the_highest() -> None:
    nan = torch.tensor([0x7FC00001, 0xFFC00000 - 2**32], dtype=torch.int32).view(torch.float32)
    scores = torch.cat([torch.tensor([float("inf")]), nan])[None]
    assert by_counting(scores, torch.ones(1, 3, dtype=torch.bool), 0.5).tolist() == [[False, True, True]]
