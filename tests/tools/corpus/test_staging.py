from pathlib import Path

import pytest

from corpus.staging import staged_folder
from wmtp_core.errors import UserError


def write(output: Path, text: str) -> None:
    with staged_folder(output, "marker") as folder:
        (folder / "marker").write_text(text)


def test_makes_parents_and_replaces_what_it_made(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    write(output, "one")
    (output / "stale").touch()
    write(output, "two")
    assert {file.name: file.read_text() for file in output.iterdir()} == {"marker": "two"}
    assert [path.name for path in output.parent.iterdir()] == ["b"]


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    write(tmp_path, "one")
    assert (tmp_path / "marker").read_text() == "one"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "made"
    write(output, "one")
    with pytest.raises(FileNotFoundError), staged_folder(output, "marker") as folder:
        (folder / "missing").rename(folder / "marker")
    assert (output / "marker").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for name in ("file", "folder"):
        with pytest.raises(UserError, match=f"{name}: exists and holds no marker; name a new folder"):
            write(tmp_path / name, "one")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "below", "one")
