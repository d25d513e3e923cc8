from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from wmtp_core import UserError
from wmtp_train.data.packed.storage import open_arrow, write_arrow


def test_tables_of_several_writes_are_one_data_set(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", (pa.table({"x": [[n, n + 1]]}) for n in range(3)))
    assert datasets.Dataset.from_file(str(tmp_path / "a.arrow"))[:]["x"] == [[0, 1], [1, 2], [2, 3]]


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, (pa.table({"x": [n, n + 1]}) for n in range(3)))
    assert open_arrow(path, 6, "write it again")["x"][:] == [0, 1, 1, 2, 2, 3]
    content = path.read_bytes()
    for size in range(0, len(content) - 8, 8):  # between all its blocks; its mark of the end may be missing
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"a\.arrow: .*damaged.*: write it again$"):
            open_arrow(path, 6, "write it again")


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.arrow: missing.*: write it again$"):
        open_arrow(tmp_path / "a.arrow", 6, "write it again")
