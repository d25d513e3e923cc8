"""Ranks that share rows by pairs; a job for `ranks.on_ranks`."""

from typing import Any

import torch

from wmtp_models.trunk.row_slices import FoldedRows
from wmtp_train.ranks.mesh import Mesh


def share(mesh: Mesh) -> dict[str, Any]:
    """Where a rank stands, and whether what it exchanges is what one process would give each."""
    pairs = mesh.share_rows(2)
    slices, folded, index = pairs.sequence, FoldedRows(2), mesh.rank % 2
    draw = torch.Generator().manual_seed(pairs.data_rank)
    whole, states = torch.rand(3, 8, generator=draw), torch.rand(3, 4, 8, 5, generator=draw)
    parts = torch.cat(states.chunk(2, dim=2))  # of both ranks
    mine = parts.chunk(2)[index].clone().requires_grad_()
    exchanged = slices.exchange(mine, split=1, joined=2)
    expected = folded.exchange(parts, split=1, joined=2).chunk(2)[index]
    exchanged.backward(expected)  # the way back
    part = slices.part(whole).requires_grad_()
    joined = slices.join(part)
    joined.backward(whole)
    return {
        "place": (pairs.data_rank, pairs.data_world),
        "over rows": pairs.all_gather(torch.tensor(mesh.rank)).tolist(),
        "of everyone": pairs.all_gather_object(mesh.rank),
        "exchanged": torch.equal(exchanged, expected),
        "back": torch.equal(mine.grad, mine),
        "joined": torch.equal(joined, whole),
        "own gradient": torch.equal(part.grad, part),
    }
