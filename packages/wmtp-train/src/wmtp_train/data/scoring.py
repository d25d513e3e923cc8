"""Reference losses of all prepared rows, computed once by any number of processes, resumable after a kill.

The rows are scored in shards; one appears by a rename when it is complete, so a kill costs a process at most one.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_train.atomic_io import commit_dir_once, write_json
from wmtp_train.data.batch import Batch, PackedRows
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.packed.storage import write_arrow
from wmtp_train.data.scores import (
    COLUMN_FILE,
    FINGERPRINT_FILE,
    check_fingerprint,
    load_scores,
    partial_folder,
    read_fingerprint,
)
from wmtp_train.ranks.collective import describe
from wmtp_train.ranks.mesh import Mesh

SHARD_ROWS = 512


@dataclass(frozen=True)
class ScoringJob:
    """Reference losses of all rows of a set, and the folder that they go to.

    Process r of R takes the shards r, r + R, … that are not done yet, and rank 0 joins them after a barrier.

    Args:
        prepared: the rows.
        token_losses: from a batch (CPU tensors) to −log P_ref of each token, `[B, S]` in nats by target position.
        output: the folder, which `scores.load_scores` opens.
        reference: the fingerprint of the reference's weights.
        mesh: the processes.
        micro_batch: rows of a batch.
        dtype: of the stored losses; "float16" halves the folder, and puts each within 2^-11 of itself or 2^-25 nats.
        computed_in: the reference's dtype.
        lockstep: all processes call `token_losses` equally often, as a reference that is sharded over them needs; one
            with fewer rows left than another goes on with rows of no meaning.
        progress: gets this process's rows, done and in all, after each batch.
    """

    prepared: PreparedData
    token_losses: Callable[[Batch], Tensor]
    output: Path
    reference: str
    mesh: Mesh
    micro_batch: int
    dtype: str = "float32"
    computed_in: str = "float32"
    lockstep: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None

    def run(self) -> None:
        """Write the score folder; return at once where it is there already.

        Raises:
            UserError: the folder, finished or not, was made with something else or cannot be written; a loss is not
                finite; shards are missing because not all processes ran.
        """
        fingerprint = {"reference": self.reference, "dtype": self.dtype, "computed_in": self.computed_in}
        wanted = self.prepared.fingerprint | fingerprint
        if self.output.is_dir() and any(self.output.iterdir()):
            load_scores(self.output, self.prepared, self.reference)
            check_fingerprint(self.output, wanted)
            return
        partial = partial_folder(self.output)
        with _writing(self.output):
            partial.mkdir(parents=True, exist_ok=True)
            if not (partial / FINGERPRINT_FILE).is_file():
                aside = partial / f"{FINGERPRINT_FILE}.{self.mesh.rank}"
                write_json(aside, wanted)
                aside.rename(partial / FINGERPRINT_FILE)
        check_fingerprint(partial, wanted)
        self._score_shards(partial)
        self.mesh.barrier()
        if self.mesh.is_first:
            with _writing(self.output):
                _join(self.prepared, partial, self.output)
        self.mesh.barrier()

    def _score_shards(self, partial: Path) -> None:
        prepared, mine = self.prepared, list(_shards(self.prepared))[self.mesh.rank :: self.mesh.world]
        owed = [shard for shard in mine if not _shard_file(partial, shard).is_file()]
        idle_batches = self._idle_batches(owed) if self.lockstep else 0
        done, total = 0, sum(map(len, owed))
        for shard in owed:
            losses = []
            for batch in _batches(prepared, shard, self.micro_batch):
                losses.append(_finite(self.token_losses(batch), batch))
                done += len(batch.row_ids)
                self.progress(done, total)
            values = np.concatenate(losses) * _scored_tokens(prepared, shard)
            with _writing(self.output):
                _write_shard(_shard_file(partial, shard), values.astype(self.dtype), self.mesh.rank)
        for _ in range(idle_batches):
            self.token_losses(PackedRows(prepared)[[0] * self.micro_batch])

    def _idle_batches(self, owed: list[range]) -> int:
        """Return how many batches the busiest process owes beyond this one's."""
        mine = sum(-(-len(shard) // self.micro_batch) for shard in owed)
        return max(self.mesh.all_gather_object(mine)) - mine


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"scores {output} cannot be written: {describe(error)}; make room or fix the folder, and start again: "
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


def _finite(losses: Tensor, batch: Batch) -> np.ndarray:
    assert losses.shape == batch.input_ids.shape, f"token_losses gave {tuple(losses.shape)}"
    losses = losses.float().cpu()
    bad = batch.row_ids[~losses.isfinite().all(dim=1)]
    if len(bad):
        raise UserError(f"reference: its loss is not finite in row {bad[0]} of the data: check its weights and dtype")
    return losses.numpy()


def _scored_tokens(prepared: PreparedData, shard: range) -> np.ndarray:
    """Return bool [rows, S]: False in the padding and at the first token of each piece, which nothing predicts."""
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
    """Publish the score folder; the shards go only after that, so a kill in between loses nothing."""
    files = [_shard_file(partial, shard) for shard in _shards(prepared)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"scores {output}: {len(missing)} of {len(files)} shards are missing, such as {missing[0]}: "
            "run every rank of `wmtp score`, rank 0 last"
        )
    complete = partial / "complete"
    complete.mkdir(exist_ok=True)
    write_arrow(complete / COLUMN_FILE, (pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files))
    write_json(complete / FINGERPRINT_FILE, read_fingerprint(partial))
    commit_dir_once(complete, output)
    shutil.rmtree(partial)
