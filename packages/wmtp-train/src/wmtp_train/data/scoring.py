"""Reference losses of all prepared rows, computed once by any number of processes, resumable after a kill.

The rows are scored in shards; one appears by a rename when it is complete, so a kill costs a process at most one.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_train.atomic_io import write_json
from wmtp_train.data.batch import Batch, PackedRows
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.packed.storage import publish, write_arrow
from wmtp_train.data.scores import (
    COLUMN_FILE,
    FINGERPRINT_FILE,
    check_fingerprint,
    load_scores,
    partial_folder,
    read_fingerprint,
)
from wmtp_train.ranks.collective import all_gather_object, describe

SHARD_ROWS = 512


def score(
    prepared: PreparedData,
    token_losses: Callable[[Batch], Tensor],
    output: str | Path,
    reference_fingerprint: str,
    rank: int,
    world: int,
    micro_batch: int,
    progress: Callable[[int, int], None] | None = None,
    dtype: str = "float32",
    computed_in: str = "float32",
    in_step: bool = False,
) -> None:
    """Writes the score folder `output` that `scores.load_scores` opens; returns at once where it is there already.

    `token_losses` maps a batch (CPU tensors) to −log P_ref of each token, [B, S] in nats by target position.
    Process `rank` of `world` takes the shards rank, rank + world, … that are not done yet, and rank 0 joins them after
    a barrier of torch.distributed, where that runs. `progress(done, total)` gets this process's rows after each batch.
    `dtype` "float16" halves the folder, and puts each loss within 2^-11 of itself or 2^-25 nats; `computed_in` is the
    reference's dtype.
    `in_step`: all processes (of torch.distributed) call `token_losses` equally often, as a reference that is sharded
    over them needs; one with fewer rows left than another goes on with rows of no meaning.

    Raises UserError where `output`, finished or not, was made with something else or cannot be written, where a loss is
    not finite, and where shards are missing because not all processes ran.
    """
    output = Path(output)
    wanted = prepared.fingerprint | {"reference": reference_fingerprint, "dtype": dtype, "computed_in": computed_in}
    if output.is_dir() and any(output.iterdir()):
        load_scores(output, prepared, reference_fingerprint)
        check_fingerprint(output, wanted)
        return
    partial = partial_folder(output)
    with _writing(output):
        partial.mkdir(parents=True, exist_ok=True)
        if not (partial / FINGERPRINT_FILE).is_file():
            aside = partial / f"{FINGERPRINT_FILE}.{rank}"
            write_json(aside, wanted)
            aside.rename(partial / FINGERPRINT_FILE)
    check_fingerprint(partial, wanted)

    owed = [shard for shard in list(_shards(prepared))[rank::world] if not _shard_file(partial, shard).is_file()]
    total = sum(len(shard) for shard in owed)
    done = 0
    idle_batches = _idle_batches(owed, micro_batch) if in_step else 0
    for shard in owed:
        losses = []
        for batch in _batches(prepared, shard, micro_batch):
            losses.append(_finite(token_losses(batch), batch))
            done += len(batch.row_ids)
            if progress:
                progress(done, total)
        values = np.concatenate(losses) * _scored_tokens(prepared, shard)
        with _writing(output):
            _write_shard(_shard_file(partial, shard), values.astype(dtype), rank)
    for _ in range(idle_batches):
        token_losses(PackedRows(prepared)[[0] * micro_batch])
    _barrier()
    if rank == 0:
        with _writing(output):
            _join(prepared, partial, output)
    _barrier()


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"scores {output} cannot be written: {describe(error)}; make room or mend the folder, and start again: "
            "what is scored is kept"
        ) from error


def _shards(prepared: PreparedData) -> Iterator[range]:
    for start in range(0, len(prepared.rows), SHARD_ROWS):
        yield range(start, min(start + SHARD_ROWS, len(prepared.rows)))


def _shard_file(partial: Path, shard: range) -> Path:
    return partial / f"rows-{shard.start:010d}-{shard.stop:010d}.arrow"


def _batches(prepared: PreparedData, shard: range, micro_batch: int) -> Iterator[Batch]:
    packed_rows = PackedRows(prepared)
    for start in range(shard.start, shard.stop, micro_batch):
        yield packed_rows[list(range(start, min(start + micro_batch, shard.stop)))]


def _idle_batches(owed: list[range], micro_batch: int) -> int:
    """How many batches the busiest process owes beyond this one's."""
    mine = sum(-(-len(shard) // micro_batch) for shard in owed)
    return max(all_gather_object(mine)) - mine


def _finite(losses: Tensor, batch: Batch) -> np.ndarray:
    assert losses.shape == batch.input_ids.shape, f"token_losses gave {tuple(losses.shape)}"
    losses = losses.float().cpu()
    bad = batch.row_ids[~losses.isfinite().all(dim=1)]
    if len(bad):
        raise UserError(f"reference: its loss is not finite in row {bad[0]} of the data: check its weights and dtype")
    return losses.numpy()


def _scored_tokens(prepared: PreparedData, shard: range) -> np.ndarray:
    """bool [rows, S]: False in the padding and at the first token of each piece, which nothing predicts."""
    table = prepared.rows.with_format("arrow")[shard.start : shard.stop]
    lengths, documents = (pc.list_flatten(table[name]).to_numpy() for name in ("document_lengths", "document_ids"))
    scored = np.repeat(documents >= 0, lengths)
    scored[np.cumsum(lengths) - lengths] = False
    return scored.reshape(len(shard), -1)


def _write_shard(path: Path, values: np.ndarray, rank: int) -> None:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))
    aside = path.with_name(f"{path.name}.{rank}")
    write_arrow(aside, [pa.table({"reference_ce": column})])
    aside.rename(path)


def _join(prepared: PreparedData, partial: Path, output: Path) -> None:
    """Publishes the score folder; the shards go only after that, so a kill in between loses nothing."""
    files = [_shard_file(partial, shard) for shard in _shards(prepared)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"scores {output}: {len(missing)} of {len(files)} shards are missing, such as {missing[0]}: "
            "run every rank of `python launch/score.py`, rank 0 last"
        )
    complete = partial / "complete"
    complete.mkdir(exist_ok=True)
    write_arrow(complete / COLUMN_FILE, (pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files))
    write_json(complete / FINGERPRINT_FILE, read_fingerprint(partial))
    publish(complete, output)
    shutil.rmtree(partial)


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
