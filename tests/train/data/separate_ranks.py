"""Scoring by ranks of which each runs alone, one after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.mesh import Mesh


class Separate(Mesh):
    """A rank for which no other waits."""

    def barrier(self) -> None:
        pass


def score(
    prepared: PreparedData,
    token_losses: Callable[[Batch], Tensor],
    output: Path,
    reference: str,
    rank: int,
    world: int,
    micro_batch: int,
    **options: Any,
) -> None:
    mesh = Separate(rank, world, torch.device("cpu"), None, None, None)  # type: ignore[arg-type]
    ScoringJob(prepared, token_losses, output, reference, mesh, micro_batch, **options).run()
