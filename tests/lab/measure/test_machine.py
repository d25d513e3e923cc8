import subprocess
from pathlib import Path

import pytest

from wmtp_lab.measure.machine import describe_commit


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_commit_is_named_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert describe_commit(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    git(tmp_path, "tag", "--annotate", "v1", "--message", "v1")  # a tag is not what is asked for
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    assert describe_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert describe_commit(tmp_path) == f"{commit}-dirty"


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_commit(tmp_path) is None
