"""The whole report as Markdown, which goes into docs/gpu.md as it is, and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_checking.parts import NEVER_HERE, PARTS
from gpu_checking.record import DONE, NOT_RUN, Record
from wmtp_lab.tables import DASH, markdown_table

COMMAND = "python tools/gpu_check.py --output runs/gpu_check"


@dataclass(frozen=True)
class Report:
    """What is known so far.

    Attributes:
        device: "cuda" or "cpu"; None: nothing was run.
        command: that was given.
        records: of the parts that ended, in order.
    """

    device: str | None
    command: str
    records: Sequence[Record]

    def markdown(self) -> str:
        """Return the page."""
        by_name = {record.path.stem: record for record in self.records}
        lines = ["# On a GPU", "", *self._opening(), "", "```", COMMAND, "```", ""]
        if by_name:
            rows = [[part.name, *_row(by_name.get(part.name))] for part in PARTS]
            lines += [markdown_table(["part", "ended", "seconds", "why"], rows), ""]
        for part in PARTS:
            record = by_name.get(part.name)
            if record is not None and (record.sections or record.output):
                lines += [f"## {part.name.capitalize()}", "", *(f"{section}\n" for section in record.sections)]
            if record is not None and record.output:
                lines += ["The end of what it printed:", "", "```", record.output.strip(), "```", ""]
        return "\n".join([*lines, "## Not run", "", *self._not_run(by_name), ""])

    def _opening(self) -> list[str]:
        if self.device is None:
            return [
                "Nothing was run on a GPU. What a CPU can show of the code for GPUs is tested there: kernels in "
                "Triton's interpreter, losses, waits of the host, and this command itself (`--device cpu --quick`). "
                "With one H100 (80 GB), this takes 8 minutes and writes the page that belongs here:",
            ]
        if self.device == "cpu":
            return [f"**A rehearsal on a CPU: no figure here is a GPU's.** Made by `{self.command}`; on a GPU it is:"]
        return [f"Made by `{self.command}`, one GPU, at most so many minutes as it says. To make it anew:"]

    def _not_run(self, by_name: dict[str, Record]) -> list[str]:
        lines = []
        for part in PARTS:
            record = by_name.get(part.name)
            if record is None or record.status == NOT_RUN:
                why = (
                    "no GPU was at hand" if self.device is None else "not reached" if record is None else record.reason
                )
                lines += [f"* {part.name}: {item}: {why}" for item in part.items]
            else:
                lines += [f"* {part.name}: {what}: {why}" for what, why in record.missing.items()]
        return [*lines, *(f"* {what}: {why}" for what, why in NEVER_HERE.items())]


def _row(record: Record | None) -> list[str]:
    if record is None:
        return [DASH, DASH, "not reached yet"]
    ended = record.status if record.status == DONE else f"**{record.status}**"
    return [ended, f"{record.seconds:.0f}", record.reason.replace("|", "\\|")]
