"""The table of everything that was measured: one Parquet file, grown run by run, whole at any time."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wmtp_core import UserError
from wmtp_lab.report.runs import Series

_FACTS = b"experiment"
SCHEMA = pa.schema(
    {"arm": pa.string(), "seed": pa.int64(), "figure": pa.string(), "step": pa.int64(), "value": pa.float64()}
)


class Row(NamedTuple):
    """One number. `seed` is None for what is measured once an arm; `step` counts optimizer steps, or repetitions."""

    arm: str
    seed: int | None
    figure: str
    step: int
    value: float


@dataclass
class Results:
    """A results file, in memory.

    Attributes:
        file: where it is.
        facts: plan, command, machine, versions, marked passages: JSON in the file's metadata.
        series: every figure over its steps, by (arm, seed, figure).
    """

    file: Path
    facts: dict[str, Any] = field(default_factory=dict)
    series: dict[tuple[str, int | None, str], Series] = field(default_factory=dict)

    def add(self, rows: Iterable[Row]) -> None:
        """Take in rows, and write the file anew."""
        for row in rows:
            steps, values = self.series.setdefault((row.arm, row.seed, row.figure), Series([], []))
            steps.append(row.step)
            values.append(row.value)
        self.save()

    def forget(self, prefix: str) -> None:
        """Drop every figure that begins so; the file keeps them until rows are added."""
        self.series = {key: series for key, series in self.series.items() if not key[2].startswith(prefix)}

    def save(self) -> None:
        """Write the file, whole or not at all. Raises UserError where that is refused."""
        rows = [
            Row(arm, seed, figure, step, value)._asdict()
            for (arm, seed, figure), series in self.series.items()
            for step, value in zip(*series, strict=True)
        ]
        schema = SCHEMA.with_metadata({_FACTS: json.dumps(self.facts)})
        partial = self.file.with_name(f".{self.file.name}.partial")
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema), partial)
            os.replace(partial, self.file)
        except OSError as error:
            raise UserError(f"{self.file}: {error}; mend that, and the same command goes on") from error

    def has(self, arm: str, seed: int | None, figure: str) -> bool:
        """Return whether that was measured."""
        return (arm, seed, figure) in self.series

    def final(self, arm: str, seed: int | None, figure: str) -> float:
        """Return the figure's last value."""
        return self.series[arm, seed, figure].values[-1]

    def figures(self, arm: str, prefix: str) -> list[str]:
        """Return names of an arm's figures that begin so, in their order, without that beginning."""
        found = dict.fromkeys(f for a, _, f in self.series if a == arm and f.startswith(prefix))
        return [figure.removeprefix(prefix) for figure in found]


def open_results(file: Path) -> Results:
    """Read a results file; an empty one where there is none yet.

    Raises:
        UserError: the file is none of ours.
    """
    results = Results(file)
    if not file.exists():
        return results
    try:
        table = pq.read_table(file)
        results.facts = json.loads(table.schema.metadata[_FACTS])
        rows = [Row(**row) for row in table.select(SCHEMA.names).to_pylist()]
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no results file of an experiment ({error}); name another") from error
    for row in rows:
        steps, values = results.series.setdefault((row.arm, row.seed, row.figure), Series([], []))
        steps.append(row.step)
        values.append(row.value)
    return results
