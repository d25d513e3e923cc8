from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from wmtp_train.data.storage import publish, write_arrow


def test_tables_of_several_writes_are_one_data_set(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", (pa.table({"x": [[n, n + 1]]}) for n in range(3)))
    assert datasets.Dataset.from_file(str(tmp_path / "a.arrow"))[:]["x"] == [[0, 1], [1, 2], [2, 3]]


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "by").write_text(name)
        publish(tmp_path / name, tmp_path / "folder")
    assert (tmp_path / "folder" / "by").read_text() == "first"


def test_publish_hides_no_other_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing", tmp_path / "folder")
