"""Checkpoints of a run: written aside, made current by a rename, verified when found, rotated; one run to a folder."""

from wmtp_train.checkpoint.loading import load_checkpoint
from wmtp_train.checkpoint.lock import run_lock
from wmtp_train.checkpoint.manifest import newest_whole_checkpoint
from wmtp_train.checkpoint.retention import newest_checkpoint
from wmtp_train.checkpoint.run_checkpoints import RunCheckpoints, check_keep_best, run_fingerprint
from wmtp_train.checkpoint.saving import save_checkpoint

__all__ = [
    "RunCheckpoints",
    "check_keep_best",
    "load_checkpoint",
    "newest_checkpoint",
    "newest_whole_checkpoint",
    "run_fingerprint",
    "run_lock",
    "save_checkpoint",
]
