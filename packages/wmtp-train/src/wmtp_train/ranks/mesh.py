"""The processes of a run as a value: who this one is, where it computes, and the groups in which all of them meet."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """One process among those of a run. It is made once, by `lifecycle.start_processes`, and handed to what needs it.

    Attributes:
        rank: of this process, from 0.
        world: number of processes; all of them are data-parallel.
        device: where this process computes.
        data_parallel: the group whose ranks hold different rows of one step. DeepSpeed's collectives run in one of
            its own.
        control: over the CPU, so that what the processes agree on waits for no accelerator.
    """

    rank: int
    world: int
    device: torch.device
    data_parallel: dist.ProcessGroup
    control: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier(group=self.data_parallel)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce a tensor over all ranks, in place; returns it."""
        dist.all_reduce(tensor, op=op, group=self.data_parallel)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack every rank's tensor `[…]`, all of one shape, in rank order: `[R, …]`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(gathered, tensor.contiguous(), group=self.data_parallel)
        return torch.stack(gathered)

    def all_gather_object(self, mine: Any) -> list[Any]:
        """Return what every rank holds, in rank order; it waits for no accelerator."""
        if self.world == 1:
            return [mine]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, mine, group=self.control)
        return gathered

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value on every rank; it waits for no accelerator."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.control, group_src=0)
        return values[0]
