"""Corpus files → prepared rows → batches, and the reference losses scored beside them."""

from wmtp_train.data.batch import Batch, PackedRows, collate
from wmtp_train.data.packed.loader import TrainLoader, evaluation_batches
from wmtp_train.data.packed.packing import unpack
from wmtp_train.data.packed.prepared import PreparedData, prepare
from wmtp_train.data.scores import load_scores
from wmtp_train.data.scoring import score

__all__ = [
    "Batch",
    "PackedRows",
    "PreparedData",
    "TrainLoader",
    "collate",
    "evaluation_batches",
    "load_scores",
    "prepare",
    "score",
    "unpack",
]
