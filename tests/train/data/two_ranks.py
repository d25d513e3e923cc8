"""One of two ranks that prepare the same data and score it: python two_ranks.py FOLDER RANK (see conftest.py)."""

import sys
from pathlib import Path

import torch.distributed as dist
from test_scoring import losses
from torch import Tensor
from transformers import AutoTokenizer

from wmtp_train.data import Batch, prepare, score, scoring


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    dist.barrier()  # from here on at once
    prepared = prepare([folder / "corpus.txt"], tokenizer, "tiny", 8, 0, folder / "cache")
    (folder / f"prepared-{rank}").write_text(str(prepared.path))
    scored: list[int] = []

    def remembering(batch: Batch) -> Tensor:
        scored.extend(batch.row_ids.tolist())
        return losses(batch)

    scoring.SHARD_ROWS = 3
    score(prepared, remembering, folder / "scores", "reference", rank, 2, 2)
    (folder / f"scored-{rank}").write_text(str(len(scored)))
    forwards: list[Batch] = []

    def counting(batch: Batch) -> Tensor:
        forwards.append(batch)
        return losses(batch)

    score(prepared, counting, folder / "scores-in-step", "reference", rank, 2, 2, in_step=True)
    (folder / f"in-step-{rank}").write_text(str(len(forwards)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
