import json

import pytest

from wmtp_train import atomic_io
from wmtp_train.atomic_io import commit_dir, commit_dir_once, remove_dir, remove_partials, write_json


def stop(*_):
    raise KeyboardInterrupt


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_json_takes_its_name_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})
    assert json.loads(path.read_text()) == {"loss": 1.5}
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    monkeypatch.setattr(atomic_io.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"loss": 2.5})
    assert json.loads(path.read_text()) == {"loss": 1.5}
    assert names(tmp_path) == ["metrics.json"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from_{name}").touch()
    commit_dir(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == ["old", "old/from_new"]


def test_the_first_to_commit_wins(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "by").write_text(name)
        commit_dir_once(tmp_path / name, tmp_path / "folder")
    assert (tmp_path / "folder" / "by").read_text() == "first"


def test_no_other_error_is_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        commit_dir_once(tmp_path / "missing", tmp_path / "folder")


def test_a_folder_goes_whole(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(atomic_io.shutil, "rmtree", lambda *_, **__: None)  # a kill before the first file goes
        remove_dir(tmp_path / "old")
    assert names(tmp_path) == [".old.discarded.partial", ".old.discarded.partial/file"]
    remove_dir(tmp_path / "absent")
    remove_partials(tmp_path, "other*")
    assert len(names(tmp_path)) == 2
    remove_partials(tmp_path, "old*")
    assert names(tmp_path) == []
