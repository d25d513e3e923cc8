"""Checkpoints of a run: written aside, made current by a rename, verified when found, rotated; one run to a folder."""

from wmtp_train.checkpoint.loading import load_checkpoint
from wmtp_train.checkpoint.lock import run_lock
from wmtp_train.checkpoint.manifest import newest_whole_checkpoint
from wmtp_train.checkpoint.retention import newest_checkpoint
from wmtp_train.checkpoint.run_checkpoints import RunCheckpoints, identity
from wmtp_train.checkpoint.saving import save_checkpoint

__all__ = [
    "RunCheckpoints",
    "identity",
    "load_checkpoint",
    "newest_checkpoint",
    "newest_whole_checkpoint",
    "run_lock",
    "save_checkpoint",
]
