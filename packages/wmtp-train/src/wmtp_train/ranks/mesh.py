"""The processes of a run as a value: who this one is, where it computes, and the groups in which all of them meet."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_models.trunk.row_slices import SharedRows, Slices, WholeRows


@dataclass(frozen=True)
class Mesh:
    """One process among those of a run. It is made once, by `lifecycle.start_processes`, and handed to what needs it.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: where this process computes.
        everyone: the group of all of them. DeepSpeed's collectives run in one of its own.
        data_parallel: the group whose ranks hold different rows of one step: everyone, unless processes share rows.
        control: over the CPU, so that what the processes agree on between two steps waits for no accelerator.
        sequence: how this process shares its rows with its neighbors.
    """

    rank: int
    world: int
    device: torch.device
    everyone: dist.ProcessGroup
    data_parallel: dist.ProcessGroup
    control: dist.ProcessGroup
    sequence: Slices = field(default_factory=WholeRows)

    def share_rows(self, count: int) -> "Mesh":
        """Return a mesh in which each `count` neighbors share rows. Every rank must call it.

        Args:
            count: divides the number of processes.
        """
        if count == 1:
            return self
        everyone = torch.arange(self.world).view(-1, count)  # [data-parallel, sequence]
        sequence, _ = dist.new_subgroups_by_enumeration(everyone.tolist())
        data_parallel, _ = dist.new_subgroups_by_enumeration(everyone.T.tolist())
        return replace(self, data_parallel=data_parallel, sequence=SharedRows(sequence))

    @property
    def data_rank(self) -> int:
        """Which rows this process holds: its rank among those that hold different ones."""
        return self.rank // self.sequence.count

    @property
    def data_world(self) -> int:
        """How many processes hold different rows of one step."""
        return self.world // self.sequence.count

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier(group=self.everyone)

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Reduce a tensor over the ranks that hold different rows, in place; returns it."""
        dist.all_reduce(tensor, op=op, group=self.data_parallel)
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        """Fill a tensor with what rank 0 holds, on every rank."""
        if self.world > 1:
            dist.broadcast(tensor, group=self.everyone, group_src=0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the tensors `[…]`, all of one shape, of the ranks that hold different rows, in rank order: `[R, …]`."""
        gathered = [torch.empty_like(tensor) for _ in range(self.data_world)]
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
