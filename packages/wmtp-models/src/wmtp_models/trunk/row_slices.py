"""Rows of which each process computes a slice: what is cut, and where the slices meet again."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core import WeightHint


class Slices(ABC):
    """How the tokens of a row lie on n processes: process r holds the r-th n-th of every row.

    Attributes:
        count: n.
        group: in which they meet; None: this process is alone.
    """

    count: int
    group: dist.ProcessGroup | None = None

    @abstractmethod
    def part(self, whole: Tensor) -> Tensor:
        """Return this process's slice `[B, S/n, …]` of what every process holds whole, `[B, S, …]`."""

    @abstractmethod
    def join(self, part: Tensor) -> Tensor:
        """Return the whole `[B, S, …]` of all slices `[B, S/n, …]`, on every process.

        Its backward gives a process the gradient of its own slice: every process computes the same of the whole.
        """

    @abstractmethod
    def exchange(self, part: Tensor, split: int, joined: int) -> Tensor:
        """Give process r the r-th n-th along the dimension `split` of every process's tensor, joined along `joined`."""

    def repeat(self, whole: Tensor) -> Tensor:
        """Return `[B, S]` for as many rows as this process attends over."""
        return whole

    def place(self, positions: Tensor, length: int) -> Tensor:
        """Return where in B whole rows of `length` tokens the positions of their slices stand, all rows end to end."""
        return positions


class WholeRows(Slices):
    """Every process computes whole rows."""

    count = 1

    def part(self, whole: Tensor) -> Tensor:
        """Return it as it is."""
        return whole

    def join(self, part: Tensor) -> Tensor:
        """Return it as it is."""
        return part

    def exchange(self, part: Tensor, split: int, joined: int) -> Tensor:
        """Return it as it is."""
        return part


class SharedRows(Slices):
    """Each process of a group computes its slice of rows that all of them hold.

    Args:
        group: whose ranks share rows.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.count, self.index = group, dist.get_world_size(group), dist.get_rank(group)

    def part(self, whole: Tensor) -> Tensor:
        """Return this rank's slice."""
        return whole.chunk(self.count, dim=1)[self.index].contiguous()

    def join(self, part: Tensor) -> Tensor:
        """Gather the slices."""
        joined: Tensor = _Join.apply(part, self)
        return joined

    def exchange(self, part: Tensor, split: int, joined: int) -> Tensor:
        """Exchange in one all-to-all, whose backward is another."""
        sent = torch.stack(part.chunk(self.count, dim=split))  # [n, …]
        received: Tensor = _AllToAll.apply(sent, self.group)
        return torch.cat(received.unbind(), dim=joined)

    def place(self, positions: Tensor, length: int) -> Tensor:
        """Return the places of this rank's positions."""
        own = length // self.count
        return positions // own * length + self.index * own + positions % own


class FoldedRows(Slices):
    """What `count` processes would compute, on one: their slices are rows of one batch, rank 0's rows first."""

    def __init__(self, count: int) -> None:
        self.count = count

    def part(self, whole: Tensor) -> Tensor:
        """Return all slices, `[n·B, S/n, …]`."""
        return torch.cat(whole.chunk(self.count, dim=1))

    def join(self, part: Tensor) -> Tensor:
        """Put the slices side by side."""
        return torch.cat(part.chunk(self.count), dim=1)

    def exchange(self, part: Tensor, split: int, joined: int) -> Tensor:
        """Exchange between the parts of the batch."""
        to_ranks = zip(*(of_rank.chunk(self.count, dim=split) for of_rank in part.chunk(self.count)), strict=True)
        return torch.cat([torch.cat(received, dim=joined) for received in to_ranks])

    def repeat(self, whole: Tensor) -> Tensor:
        """Return them once for each process."""
        return whole.repeat(self.count, 1)


class HintOfSlices:
    """A hint of whole rows' weights, to a loss that sees slices of them.

    Args:
        hint: of the whole rows.
        slices: how they are cut.
        length: of a whole row, S.
    """

    def __init__(self, hint: WeightHint, slices: Slices, length: int) -> None:
        self.hint, self.slices, self.length = hint, slices, length
        self.share, self.wrong = hint.share, hint.wrong

    def __call__(self, positions: Tensor, ce: Tensor) -> Tensor:
        """Return what the hint says of the same tokens."""
        return self.hint(self.slices.place(positions, self.length), ce)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous(), group=ctx.group)
        return received, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, rows: SharedRows) -> Tensor:
        ctx.rows = rows
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(rows.count)]
        dist.all_gather(parts, part.contiguous(), group=rows.group)
        return torch.cat(parts, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.part(grad), None
