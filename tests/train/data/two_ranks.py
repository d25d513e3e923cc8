"""One of two ranks that prepare the same data and score it: python two_ranks.py FOLDER RANK (see conftest.py)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_scoring import losses
from torch import Tensor
from transformers import AutoTokenizer

from wmtp_train.data import scoring
from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.prepared import prepare
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.mesh import Mesh


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    everyone = dist.group.WORLD
    mesh = Mesh(rank, 2, torch.device("cpu"), everyone, everyone)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    dist.barrier()  # from here on at once
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
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
