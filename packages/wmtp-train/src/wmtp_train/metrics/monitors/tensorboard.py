"""TensorBoard: figures with all heads of a quantity in one chart, and the settings beside final metrics."""

from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from wmtp_train.metrics.monitors.base import Monitor
from wmtp_train.settings.schema import Settings

_HEAD_CHARTS = ["ce", "distillation", "reference_ce", "excess_mean", "threshold", "selected_ratio", "selected_count"]


class TensorBoard(Monitor):
    """Events in `output_dir/tensorboard/`. Points from `first_step` on are dropped when they are read."""

    def __init__(self, settings: Settings, first_step: int | None) -> None:
        self._settings = settings
        self._writer: Any = SummaryWriter(str(settings.output_dir / "tensorboard"), purge_step=first_step)
        if first_step is not None:
            sets = settings.data.evaluate
            heads = {name: ["Multiline", [rf"^{name}/head_\d+$"]] for name in _HEAD_CHARTS}
            held_out = {name: ["Multiline", [rf"^evaluation/{name}/ce/head_\d+$"]] for name in sets}
            noise = {"kept by kind": ["Multiline", [r"^noise/kept/.*"]], "selection": ["Multiline", [r"^noise/[pr].*"]]}
            self._writer.add_custom_scalars({"heads": heads, "held-out loss by head": held_out, "noise": noise})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add one point per tag."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def write_final(self, metrics: dict[str, float], step: int) -> None:
        """Add the metrics as `final/…`, and to the HPARAMS tab, beside the settings that tell runs apart."""
        final = {f"final/{name}": value for name, value in metrics.items()}
        # `SummaryWriter.add_hparams` would make a second file of events, by default in a folder named by the clock.
        for summary in hparams(_chosen(self._settings), final):
            self._writer.file_writer.add_summary(summary)
        self.write(final, step)

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


def _chosen(settings: Settings) -> dict[str, str | float]:
    return {
        "algo": settings.algo,
        "steps": settings.steps,
        "seed": settings.seed,
        "horizon": settings.model.horizon,
        "head_kind": settings.model.head_kind,
        "model.train": settings.model.train,
        "sequence_length": settings.data.sequence_length,
        "learning_rate": settings.optimizer.learning_rate,
        "weight_decay": settings.optimizer.weight_decay,
        "k_percent": settings.selection.k_percent,
        "scope": settings.selection.scope,
        "normalize_by": settings.normalize_by,
        "objective": settings.objective,
        "detach_heads": settings.model.detach_heads,
        "head_coefficients": str(settings.head_coefficients),
        "reference": str(settings.reference.source),
        "deepspeed_config": str(settings.deepspeed_config),
    }
