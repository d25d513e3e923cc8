"""The exact top k over the ranks of a process group, by counting: no rank ever sees another one's scores.

A float's bits order it, so the k-th largest score of all ranks is found digit by digit: four times, each rank counts
how many of its candidates have which next eight bits, and the counts are summed. What is sent is 256 numbers a digit
and row, whatever the number of scores and of ranks.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

_BITS, _DIGITS = 8, 4


def topk_mask_over_ranks(
    scores: Tensor, valid: Tensor, count_of: Callable[[Tensor], Tensor], group: dist.ProcessGroup | None
) -> Tensor:
    """Keep the top scores of each row over all ranks, ties by rank and position (lower first).

    Args:
        scores: float32 `[G, n]`, this rank's; NaN counts as the highest. n may differ from rank to rank.
        valid: bool `[G, n]`.
        count_of: from the number of valid scores of each row over all ranks, int64 `[G, 1]`, to how many are kept.
        group: the ranks; None: this process alone.

    Returns:
        bool `[G, n]`, this rank's part. No host synchronisation beside the collectives.
    """
    keys = _ordered_keys(scores)
    candidates, larger = valid, torch.zeros_like(valid)
    wanted = count_of(_sum_over_ranks(valid.sum(dim=1, keepdim=True), group))  # [G, 1]
    for digit in reversed(range(_DIGITS)):
        values = (keys >> (_BITS * digit)) & (2**_BITS - 1)
        counts = scores.new_zeros(len(scores), 2**_BITS, dtype=torch.int64)
        counts.scatter_add_(1, values, candidates.long())
        _sum_over_ranks(counts, group)
        above = counts.flip(1).cumsum(dim=1).flip(1) - counts  # [G, 256], candidates of a larger digit
        threshold = (above < wanted).int().argmax(dim=1, keepdim=True)  # the smallest such digit is the k-th one's
        larger = larger | (candidates & (values > threshold))
        wanted = wanted - above.gather(1, threshold)
        candidates = candidates & (values == threshold)
    # What is left equals the k-th score.
    place = candidates.cumsum(dim=1) + _of_earlier_ranks(candidates.sum(dim=1, keepdim=True), group)
    return larger | (candidates & (place <= wanted))


def _ordered_keys(scores: Tensor) -> Tensor:
    """Return int64 in 0 … 2³²−1 that order as the scores do, −0 as 0, and every NaN above all."""
    bits = (scores + 0.0).view(torch.int32)  # −0 + 0 = 0
    bits = bits.where(~scores.isnan(), torch.iinfo(torch.int32).max)
    return (bits ^ ((bits >> 31) & torch.iinfo(torch.int32).max)).long() + 2**31


def _sum_over_ranks(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Add up counts over the ranks, in place, and return them."""
    if group is not None:
        dist.all_reduce(counts, group=group)
    return counts


def _of_earlier_ranks(ties: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return how many of `[G, 1]` the ranks before this one have."""
    if group is None:
        return torch.zeros_like(ties)
    gathered = [torch.empty_like(ties) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, ties, group=group)
    before = gathered[: dist.get_rank(group)]
    return torch.stack([torch.zeros_like(ties), *before]).sum(dim=0)
