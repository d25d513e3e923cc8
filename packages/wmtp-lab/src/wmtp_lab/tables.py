"""Tables of metrics, the same for Markdown and HTML, and the numbers in their cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

DASH = "–"
"""Stands where nothing was measured."""


@dataclass(frozen=True)
class Table:
    """Cells as text, with a sentence on what they are."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return a heading, the note and the table."""
        return "\n".join([f"### {self.title}", "", self.note, "", markdown_table(self.head, self.rows)])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; its first column holds names, the others numbers."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Return a number with a minus sign that is one; a dash for None and NaN."""
    if value is None or isnan(value):
        return DASH
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\u2212")


def percent(value: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * value:.0f}\u202f%"
