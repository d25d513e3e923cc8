"""Checkpoints of a run: written aside, made current by a rename, verified when found, rotated; one run to a folder."""

from wmtp_train.checkpoint.folder import newest_checkpoint
from wmtp_train.checkpoint.loading import load_checkpoint
from wmtp_train.checkpoint.lock import held_by_this_run
from wmtp_train.checkpoint.manifest import newest_whole_checkpoint
from wmtp_train.checkpoint.run import RunCheckpoints, identity
from wmtp_train.checkpoint.saving import save_checkpoint

__all__ = [
    "RunCheckpoints",
    "held_by_this_run",
    "identity",
    "load_checkpoint",
    "newest_checkpoint",
    "newest_whole_checkpoint",
    "save_checkpoint",
]
