"""The benchmark of the top k over ranks: by counting digits, against gathering and sorting all ranks' scores."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from benchmarks.equality import WrongResult
from wmtp_core.distributed_top_k import topk_mask_over_ranks
from wmtp_core.selection import num_selected, topk_mask
from wmtp_lab.measure.stopwatch import Spread, spread
from wmtp_lab.tables import markdown_table

K_PERCENT, HEADS = 0.6, 3
_WORLDS, _SIZES, _ROUNDS = (1, 2, 4, 8), (2**13, 2**16, 2**19), 7
_QUICK = ((1, 2), (300,), 2)
NOTE = (
    "Top 60 % of three heads' scores over processes of one machine (gloo, one thread each): milliseconds of the "
    "slowest process, median (lowest–highest) of interleaved rounds, and what a process receives, where an all-reduce "
    "of b bytes over R processes counts 2·b·(R−1)/R. Both keep exactly the same scores, which is checked first."
)


@dataclass(frozen=True)
class SelectionTimes:
    """Both forms on one number of processes and scores.

    Attributes:
        world: processes.
        scores: of a head on each process.
        seconds: of the slowest process, a number for each round, by form.
        received_bytes: by each process, by form.
    """

    world: int
    scores: int
    seconds: dict[str, list[float]]
    received_bytes: dict[str, int]


def gather_and_sort(scores: Tensor, valid: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Keep the top k by handing every rank's scores to every rank: what counting replaced."""
    world, n = dist.get_world_size(group), scores.shape[1]
    mine = torch.stack([scores, valid.float()])  # [2, G, n]
    gathered = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(gathered, mine, group=group)
    every_score, every_valid = torch.cat(gathered, dim=-1)  # [G, R·n] each
    start = dist.get_rank(group) * n
    return topk_mask(every_score, every_valid.bool(), K_PERCENT)[:, start : start + n]


def count_digits(scores: Tensor, valid: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Keep the top k as `wmtp_core` does."""
    return topk_mask_over_ranks(scores, valid, lambda count: num_selected(count, K_PERCENT), group)


FORMS: dict[str, Callable[[Tensor, Tensor, dist.ProcessGroup], Tensor]] = {
    "gather and sort": gather_and_sort,
    "count digits": count_digits,
}


def selection_times(quick: bool) -> Iterator[SelectionTimes]:
    """Measure every number of processes and scores.

    Raises:
        WrongResult: the two forms do not keep the same scores.
    """
    worlds, sizes, rounds = _QUICK if quick else (_WORLDS, _SIZES, _ROUNDS)
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_be_rank, (world, sizes, rounds, Path(folder)), nprocs=world)
            found = json.loads((Path(folder) / "found.json").read_text())
        yield from (SelectionTimes(**times) for times in found)


def selection_table(times: list[SelectionTimes]) -> str:
    """Return a Markdown table with a row for each number of processes and scores."""
    head = ["processes × scores of a head"]
    head += [f"{form}, {what}" for what in ("ms", "received") for form in FORMS]
    rows = []
    for found in times:
        spreads = [spread(found.seconds[form]) for form in FORMS]
        received = [f"{found.received_bytes[form] / 1000:,.0f} kB" for form in FORMS]
        rows.append([f"{found.world} × {found.scores:,}", *map(_milliseconds, spreads), *received])
    return f"{NOTE}\n\n{markdown_table(head, rows)}"


def _milliseconds(seconds: Spread) -> str:
    return Spread(*(1000 * value for value in seconds)).text(1)


def _be_rank(rank: int, world: int, sizes: tuple[int, ...], rounds: int, folder: Path) -> None:
    """Measure on one of `world` processes; the first writes what was found."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = [asdict(_measure(rank, world, size, rounds)) for size in sizes]
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _measure(rank: int, world: int, size: int, rounds: int) -> SelectionTimes:
    group = dist.group.WORLD
    assert group is not None
    draw = torch.Generator().manual_seed(rank)
    scores = torch.randn(HEADS, size, generator=draw)
    scores[:, ::7] = scores[:, ::7].mul(4).round()  # ties
    valid = torch.rand(scores.shape, generator=draw) < 0.95
    kept, received = {}, {}
    for name, form in FORMS.items():
        with _counted_bytes(world) as traffic:
            kept[name] = form(scores, valid, group)
        received[name] = round(sum(traffic))
    first, *others = kept.values()
    if not all(torch.equal(first, other) for other in others):
        raise WrongResult(f"rank {rank} of {world}: counting keeps other scores than sorting, of {size} a head")
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(rounds):
        for name, form in FORMS.items():
            dist.barrier()
            start = time.perf_counter()
            form(scores, valid, group)
            slowest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            seconds[name].append(float(slowest))
    return SelectionTimes(world, size, seconds, received)


@contextmanager
def _counted_bytes(world: int) -> Iterator[list[float]]:
    """Give a list that has, when the block ends, the bytes that this process received in each collective."""
    received: list[float] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def reducing(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        received.append(2 * tensor.nbytes * (world - 1) / world)
        return all_reduce(tensor, *args, **kwargs)

    def gathering(tensors: list[Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        received.append(tensor.nbytes * (world - 1))
        return all_gather(tensors, tensor, *args, **kwargs)

    with patch.object(dist, "all_reduce", reducing), patch.object(dist, "all_gather", gathering):
        yield received
