"""A checkpoint that was found whole, into the engine and the random generators."""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_train.checkpoint.rng import reseed, restore_rng
from wmtp_train.checkpoint.saving import versions
from wmtp_train.engines.deepspeed.universal import load_resharded
from wmtp_train.ranks.lifecycle import fail_on_all_ranks
from wmtp_train.settings.diff import differences


def load_checkpoint(engine: DeepSpeedEngine, path: Path, expected: dict[str, Any], seed: int) -> dict[str, Any]:
    """Load weights, optimizer, schedule and random generators; returns the `state` that was saved, with "step".

    With the number of processes that saved it, the run goes on to the bit. With another, every rank gets its share of
    the same weights and moments, and its generators start from (seed, step, rank).

    Args:
        path: a checkpoint that `newest_whole_checkpoint` has found.
        expected: what of that state has to be as it was.

    Raises:
        UserError: `path` is a checkpoint of another run or ZeRO stage; as `fail_on_all_ranks` does.
    """
    about: dict[str, Any] = json.loads((path / "run.json").read_text())
    expected = {"stage": engine.zero_optimization_stage(), **expected}
    if changed := differences({name: about[name] for name in expected}, expected):
        each = ", ".join(f"{name} {saved} (this run: {now})" for name, saved, now in changed)
        fail_on_all_ranks(f"checkpoint {path}: saved with {each}; start it alike, or choose another output_dir")
    warn_changed(f"checkpoint {path} was saved by other versions", about["versions"], versions())
    same_world = about["world_size"] == dist.get_world_size()
    if same_world or about["stage"] == 0:  # at stage 0 every rank loads everything
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        assert loaded is not None, "DeepSpeed only warns of a checkpoint that it cannot load"
    else:
        load_resharded(engine, path, about["world_size"])
    if same_world:
        restore_rng(path)
    else:
        reseed(seed, about["step"])
    return about


def warn_changed(what: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """One line on stderr, if there is any change: a warning that it is so, and each leaf's values."""
    changed = [f"{name} {before} → {after}" for name, before, after in differences(saved, now)]
    if changed and dist.get_rank() == 0:
        print(f"warning: {what}: {', '.join(changed)}", file=sys.stderr)
