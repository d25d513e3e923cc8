"""A run's settings beside its final metrics, in TensorBoard's HPARAMS tab, where runs can be compared."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from wmtp_train.settings.schema import Settings


def write_hparams(folder: Path, settings: Settings, metrics: dict[str, float]) -> None:
    """Add the settings that tell runs apart, and the metrics as `final/…`, to the events in `folder`."""
    chosen = {
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
    final = {f"final/{name}": value for name, value in metrics.items()}
    # `SummaryWriter.add_hparams` would make a second file of events, by default in a folder named by the clock.
    with SummaryWriter(str(folder)) as writer:
        for summary in hparams(chosen, final):
            writer.file_writer.add_summary(summary)
        for name, value in final.items():
            writer.add_scalar(name, value, settings.steps)
