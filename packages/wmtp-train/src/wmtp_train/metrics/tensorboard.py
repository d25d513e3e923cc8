"""TensorBoard, written by rank 0 alone."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_HEAD_CHARTS = ["ce", "distillation", "reference_ce", "excess_mean", "threshold", "selected_ratio", "selected_count"]


class Monitor:
    """Scalars over optimizer steps, with all heads of a quantity in one chart.

    Args:
        folder: where the event files go.
        is_writer: whether this rank writes; on the others every call does nothing.
        first_step: what stands there from this step on is from a run that was cut off, and is dropped.
        evaluation_sets: names of the held-out sets, a chart each.
    """

    def __init__(self, folder: Path, is_writer: bool, first_step: int, evaluation_sets: list[str]) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None) if is_writer else None
        if self._writer is not None:
            heads = {name: ["Multiline", [rf"^{name}/head_\d+$"]] for name in _HEAD_CHARTS}
            held_out = {name: ["Multiline", [rf"^evaluation/{name}/ce/head_\d+$"]] for name in evaluation_sets}
            noise = {"kept by kind": ["Multiline", [r"^noise/kept/.*"]], "selection": ["Multiline", [r"^noise/[pr].*"]]}
            self._writer.add_custom_scalars({"heads": heads, "held-out loss by head": held_out, "noise": noise})

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Add one point per tag at `step`, the number of optimizer steps done."""
        if self._writer is not None:
            for tag, value in metrics.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._writer is not None:
            self._writer.close()
