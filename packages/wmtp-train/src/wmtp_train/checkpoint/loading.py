"""A checkpoint that was found whole, into the engine and the random generators."""

import json
import sys
from pathlib import Path
from typing import Any

from wmtp_train.checkpoint.rng import reseed, restore_rng
from wmtp_train.checkpoint.saving import versions
from wmtp_train.engines.base import Engine
from wmtp_train.ranks.collective import fail_on_all_ranks
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.diff import differences
from wmtp_train.settings.schema import Settings


def load_checkpoint(
    engine: Engine, mesh: Mesh, path: Path, expected: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """Load weights, optimizer, schedule and random generators.

    With the number of processes that saved it, the run goes on to the bit. With another, every rank gets its share of
    the same weights and moments, and its generators start from (seed, step, rank).

    Args:
        engine: what the state goes into.
        mesh: the processes.
        path: a checkpoint that `newest_whole_checkpoint` has found.
        expected: what of that state has to be as it was.
        settings: the current ones, which count from here on.

    Returns:
        The `state` that was saved, with "step".

    Raises:
        UserError: `path` is a checkpoint of another run, ZeRO stage or version; as `fail_on_all_ranks` does.
    """
    about: dict[str, Any] = json.loads((path / "run.json").read_text())
    expected = {"stage": engine.stage, **expected}
    if about.get("format") != expected.get("format"):
        fail_on_all_ranks(
            mesh,
            f"checkpoint {path}: an earlier version saved it, and in another form; finish the run with that "
            "version, or start one from its model/ folder (model.source) in another output_dir",
        )
    if changed := differences({name: about[name] for name in expected}, expected):
        each = ", ".join(f"{name} {saved} (this run: {now})" for name, saved, now in changed)
        fail_on_all_ranks(mesh, f"checkpoint {path}: saved with {each}; start it alike, or choose another output_dir")
    warn_changed(f"checkpoint {path} was saved by other versions", about["versions"], versions(), mesh)
    engine.load(path, about["world_size"], settings.optimizer)
    if about["world_size"] == mesh.world:
        restore_rng(path, mesh)
    else:
        reseed(settings.seed, about["step"], mesh)
    return about


def warn_changed(what: str, saved: dict[str, Any], now: dict[str, Any], mesh: Mesh) -> None:
    """Warn in one line on rank 0's stderr, if anything changed, with each leaf's values."""
    changed = [f"{name} {before} → {after}" for name, before, after in differences(saved, now)]
    if changed and mesh.is_first:
        print(f"warning: {what}: {', '.join(changed)}", file=sys.stderr)
