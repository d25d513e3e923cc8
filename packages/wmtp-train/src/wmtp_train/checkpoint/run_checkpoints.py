"""The checkpoints of one run: where it goes on, what it saves, and which of its checkpoints is the best."""

import json
from collections.abc import Iterable
from typing import Any

from deepspeed.runtime.engine import DeepSpeedEngine

from wmtp_models import MtpForCausalLM
from wmtp_train.checkpoint.loading import load_checkpoint, warn_changed
from wmtp_train.checkpoint.manifest import newest_whole_checkpoint
from wmtp_train.checkpoint.retention import newest_checkpoint
from wmtp_train.checkpoint.saving import save_checkpoint
from wmtp_train.engines.deepspeed.engine import apply_optimizer_settings
from wmtp_train.ranks.collective import broadcast_object
from wmtp_train.ranks.lifecycle import fail_on_all_ranks
from wmtp_train.settings.schema import Settings


def identity(settings: Settings, policy: MtpForCausalLM, data: dict[str, str]) -> dict[str, Any]:
    """What makes a run this one and no other, as JSON; a checkpoint of another is refused.

    Args:
        data: the fingerprint of the training rows and their scores.
    """
    trunk = json.loads(policy.config.trunk.to_json_string())
    del trunk["transformers_version"]  # who wrote it
    shape = settings.model.model_dump(include={"horizon", "head_kind", "train", "lora_rank", "lora_alpha"})
    return {"algo": settings.algo, "seed": settings.seed, "data": data, "model": {**shape, "trunk": trunk}}


class RunCheckpoints:
    """The folder `output_dir/checkpoints`.

    Args:
        settings: the run.
        engine: what is saved and loaded.
        identity: of the run, by `identity`.
        held_out: names of the held-out sets, for `keep_best`.

    Raises:
        UserError: `keep_best` is no held-out loss of this run.
    """

    def __init__(
        self, settings: Settings, engine: DeepSpeedEngine, identity: dict[str, Any], held_out: Iterable[str]
    ) -> None:
        self.settings, self.engine, self.identity = settings, engine, identity
        self.folder = settings.output_dir / "checkpoints"
        losses = [f"{name}/ce/head_{head}" for name in held_out for head in range(settings.model.horizon)]
        if settings.keep_best not in (None, *losses):
            choice = (
                f"choose one of {', '.join(losses)}" if losses else "data.evaluate names no held-out set; leave it out"
            )
            fail_on_all_ranks(f"keep_best is {settings.keep_best!r}; {choice}")

    def resume(self) -> tuple[int, int]:
        """Load the newest whole checkpoint, if the settings say so; steps done and rows consumed so far.

        Raises:
            UserError: a run is there that is not to be resumed, is another, or is damaged throughout.
        """
        settings = self.settings
        if not settings.resume:
            if broadcast_object(newest_checkpoint(self.folder) is not None):
                fail_on_all_ranks(
                    f"output_dir {settings.output_dir} holds a run; --resume it, or choose another output_dir"
                )
            return 0, 0
        newest = newest_whole_checkpoint(self.folder)
        if newest is None:
            return 0, 0
        about = load_checkpoint(self.engine, newest, self.identity, settings.seed)
        now = settings.model_dump(mode="json", exclude={"resume"})
        saved = {name: value for name, value in about["settings"].items() if name != "resume"}
        warn_changed(f"checkpoint {newest} was saved with other settings", saved, now)
        apply_optimizer_settings(self.engine, settings.optimizer)
        return about["step"], about["consumed_rows"]

    def save(self, step: int, consumed_rows: int, figures: dict[str, float]) -> None:
        """Save the run as it is after `step` steps; `figures` are its held-out figures, if they are known."""
        state = {
            **self.identity,
            "consumed_rows": consumed_rows,
            "figures": figures,
            "settings": self.settings.model_dump(mode="json"),
        }
        settings = self.settings
        save_checkpoint(self.engine, self.folder, step, state, settings.keep_checkpoints, settings.keep_best)

    def last_good(self) -> str:
        """A clause that names the checkpoint to go on from."""
        newest = newest_checkpoint(self.folder)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was saved before"
