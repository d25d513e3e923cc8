from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wmtp_core import UserError
from wmtp_lab.experiment.results import Results, Row, open_results

ROWS = [
    Row("a", 0, "loss", 0, 0.1),
    Row("a", 0, "loss", 10, 1 / 3),
    Row("a", 1, "loss", 0, 0.2),
    Row("a", None, "cost/flop", 0, 2.0**70),
]


def test_what_was_added_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.parquet", {"steps": 3, "plan": {"seeds": [0]}})
    results.add(ROWS[:2])
    results.add(ROWS[2:])
    found = open_results(results.file)
    assert found.series == results.series
    assert found.series["a", 0, "loss"] == ([0, 10], [0.1, 1 / 3])
    assert found.facts == {"steps": 3, "plan": {"seeds": [0]}}
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]
    assert pq.read_table(results.file).to_pylist()[3] == ROWS[3]._asdict()


def test_questions(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.parquet")
    results.add(ROWS)
    assert results.has("a", 1, "loss")
    assert not results.has("a", None, "loss")
    assert results.final("a", 0, "loss") == 1 / 3
    assert results.metrics("a", "cost/") == ["flop"]
    results.forget("cost/")
    assert results.metrics("a", "") == ["loss"]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert open_results(tmp_path / "missing.parquet").series == {}
    text, table = tmp_path / "text.parquet", tmp_path / "table.parquet"
    text.write_text("no table")
    pq.write_table(pa.table({"a": [1]}), table)
    for file in (text, table):
        with pytest.raises(UserError, match="is no results file"):
            open_results(file)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "results.parquet")
    results.add(ROWS[:1])
    before = results.file.read_bytes()

    def fail(table: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(UserError, match="disk full; fix that, and the same command goes on"):
        results.add(ROWS[1:])
    assert results.file.read_bytes() == before


def test_a_file_that_calls_its_metrics_figures_is_read(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.parquet", {"steps": 3})
    results.add(ROWS)
    table = pq.read_table(results.file)
    names = ["arm", "seed", "figure", "step", "value"]
    pq.write_table(table.rename_columns(names).replace_schema_metadata(table.schema.metadata), results.file)
    assert open_results(results.file) == results
