"""Ranks that prepare the same data and score it; a job for `ranks.on_ranks`."""

from pathlib import Path

from test_scoring import losses
from torch import Tensor
from transformers import AutoTokenizer

from wmtp_train.data import scoring
from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.prepared import prepare
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.mesh import Mesh


def prepare_and_score(mesh: Mesh, folder: Path) -> None:
    rank = mesh.rank
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    mesh.barrier()  # from here on at once
    prepared = prepare([folder / "corpus.txt"], tokenizer, "tiny", 8, 0, folder / "cache")
    (folder / f"prepared-{rank}").write_text(str(prepared.path))
    scored: list[int] = []

    def remembering(batch: Batch) -> Tensor:
        scored.extend(batch.row_ids.tolist())
        return losses(batch)

    scoring.SHARD_ROWS = 3
    ScoringJob(prepared, remembering, folder / "scores", "reference", mesh, 2).run()
    (folder / f"scored-{rank}").write_text(str(len(scored)))
    forwards: list[Batch] = []

    def counting(batch: Batch) -> Tensor:
        forwards.append(batch)
        return losses(batch)

    ScoringJob(prepared, counting, folder / "scores-in-step", "reference", mesh, 2, lockstep=True).run()
    (folder / f"in-step-{rank}").write_text(str(len(forwards)))
