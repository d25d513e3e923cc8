"""The checkpoints of one run: where it goes on, what it saves, and which of its checkpoints is the best."""

import json
from collections.abc import Iterable
from typing import Any

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM
from wmtp_train.checkpoint.loading import load_checkpoint, warn_changed
from wmtp_train.checkpoint.manifest import newest_whole_checkpoint
from wmtp_train.checkpoint.retention import HIGHEST_IS_BEST, newest_checkpoint
from wmtp_train.checkpoint.saving import save_checkpoint
from wmtp_train.engines.base import Engine
from wmtp_train.ranks.collective import fail_on_all_ranks
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings

_FORMAT = 3  # 1 had the heads inside the trunk's last layer, 2 the random generators in a pickle


def run_fingerprint(settings: Settings, policy: MtpForCausalLM, data: dict[str, str]) -> dict[str, Any]:
    """Return what makes a run this one and no other, as JSON; a checkpoint of another is refused.

    Args:
        settings: the run's.
        policy: its model.
        data: the fingerprint of the training rows and their scores.
    """
    trunk = json.loads(policy.config.trunk.to_json_string())
    del trunk["transformers_version"]  # who wrote it
    names = {"horizon", "head_kind", "shared_module", "head_block", "train", "lora_rank", "lora_alpha"}
    shape = settings.model.model_dump(include=names)
    return {
        "format": _FORMAT,
        "algo": settings.algo,
        "seed": settings.seed,
        "data": data,
        "model": {**shape, "trunk": trunk},
    }


def check_keep_best(settings: Settings, held_out: Iterable[str]) -> None:
    """Refuse a `keep_best` that no evaluation of this run computes.

    Raises:
        UserError: it is no such metric of this run.
    """
    drafting = HIGHEST_IS_BEST if settings.model.horizon > 1 else ()
    metrics = [*(f"ce/head_{head}" for head in range(settings.model.horizon)), *drafting]
    known = [f"{name}/{metric}" for name in held_out for metric in metrics]
    if settings.keep_best not in (None, *known):
        choice = f"choose one of {', '.join(known)}" if known else "data.evaluate names no held-out set; leave it out"
        raise UserError(f"keep_best is {settings.keep_best!r}; {choice}")


class RunCheckpoints:
    """The folder `output_dir/checkpoints`.

    Args:
        settings: the run's.
        mesh: the processes.
        engine: what is saved and loaded.
        fingerprint: of the run, by `run_fingerprint`.
    """

    def __init__(self, settings: Settings, mesh: Mesh, engine: Engine, fingerprint: dict[str, Any]) -> None:
        self.settings, self.mesh, self.engine, self.fingerprint = settings, mesh, engine, fingerprint
        self.folder = settings.output_dir / "checkpoints"

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint, if the settings say so.

        Returns:
            The steps done so far, and the state of the training batches; 0 and nothing for a new run.

        Raises:
            UserError: a run is there that is not to be resumed, is another, or is damaged throughout.
        """
        settings, mesh = self.settings, self.mesh
        if not settings.resume:
            if mesh.broadcast_object(newest_checkpoint(self.folder) is not None):
                fail_on_all_ranks(
                    mesh, f"output_dir {settings.output_dir} holds a run; --resume it, or choose another output_dir"
                )
            return 0, {}
        newest = newest_whole_checkpoint(self.folder, mesh)
        if newest is None:
            return 0, {}
        about = load_checkpoint(self.engine, mesh, newest, self.fingerprint, settings)
        now = settings.model_dump(mode="json", exclude={"resume"})
        saved = {name: value for name, value in about["settings"].items() if name != "resume"}
        warn_changed(f"checkpoint {newest} was saved with other settings", saved, now, mesh)
        return about["step"], about["batches"]

    def save(self, step: int, batches: dict[str, Any], metrics: dict[str, float]) -> None:
        """Save the run as it is after `step` steps.

        Args:
            step: optimizer steps done.
            batches: the state of the training batches.
            metrics: held-out metrics, if they are known.
        """
        settings = self.settings
        state = {
            **self.fingerprint,
            "batches": batches,
            "metrics": metrics,
            "settings": settings.model_dump(mode="json"),
        }
        keep, best_by = settings.keep_checkpoints, settings.keep_best
        save_checkpoint(self.engine, self.mesh, self.folder, step, state, keep, best_by)

    def last_good(self) -> str:
        """Return a clause that names the checkpoint to go on from."""
        newest = newest_checkpoint(self.folder)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was saved before"
