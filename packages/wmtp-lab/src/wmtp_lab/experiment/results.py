"""The table of everything that was measured: one Parquet file, grown run by run, whole at any time."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from wmtp_core import UserError
from wmtp_lab.report.runs import Series
from wmtp_train.atomic_io import atomic_file

_FACTS = b"experiment"
SCHEMA = pa.schema(
    {"arm": pa.string(), "seed": pa.int64(), "metric": pa.string(), "step": pa.int64(), "value": pa.float64()}
)


class Row(NamedTuple):
    """One number. `seed` is None for what is measured once an arm; `step` counts optimizer steps, or repetitions."""

    arm: str
    seed: int | None
    metric: str
    step: int
    value: float


@dataclass
class Results:
    """A results file, in memory.

    Attributes:
        file: where it is.
        facts: plan, command, machine, versions, marked passages: JSON in the file's metadata.
        series: every metric over its steps, by (arm, seed, metric).
    """

    file: Path
    facts: dict[str, Any] = field(default_factory=dict)
    series: dict[tuple[str, int | None, str], Series] = field(default_factory=dict)

    def add(self, rows: Iterable[Row]) -> None:
        """Take in rows, and write the file anew."""
        self._take(rows)
        self.save()

    def _take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            steps, values = self.series.setdefault((row.arm, row.seed, row.metric), Series([], []))
            steps.append(row.step)
            values.append(row.value)

    def forget(self, prefix: str) -> None:
        """Drop every metric that begins so; the file keeps them until rows are added."""
        self.series = {key: series for key, series in self.series.items() if not key[2].startswith(prefix)}

    def save(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: that is refused.
        """
        rows = [
            Row(arm, seed, metric, step, value)._asdict()
            for (arm, seed, metric), series in self.series.items()
            for step, value in zip(*series, strict=True)
        ]
        schema = SCHEMA.with_metadata({_FACTS: json.dumps(self.facts)})
        try:
            with atomic_file(self.file) as partial:
                pq.write_table(pa.Table.from_pylist(rows, schema), partial)
        except OSError as error:
            raise UserError(f"{self.file}: {error}; fix that, and the same command goes on") from error

    def has(self, arm: str, seed: int | None, metric: str) -> bool:
        """Return whether that was measured."""
        return (arm, seed, metric) in self.series

    def final(self, arm: str, seed: int | None, metric: str) -> float:
        """Return the metric's last value."""
        return self.series[arm, seed, metric].values[-1]

    def metrics(self, arm: str, prefix: str) -> list[str]:
        """Return names of an arm's metrics that begin so, in their order, without that beginning."""
        found = dict.fromkeys(f for a, _, f in self.series if a == arm and f.startswith(prefix))
        return [metric.removeprefix(prefix) for metric in found]


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
        names = ["metric" if name == "figure" else name for name in table.column_names]  # as files of before have it
        results._take(Row(**row) for row in table.rename_columns(names).select(SCHEMA.names).to_pylist())
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no results file of an experiment ({error}); name another") from error
    return results
