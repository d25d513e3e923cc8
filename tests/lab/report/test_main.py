from pathlib import Path
from typing import Any

import pytest

from wmtp_lab.report import __main__ as report


def test_page_and_picture_are_written(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "new/report.html", tmp_path / "new/overview.png"
    assert report.main([str(make_run()), "--output", str(page), "--picture", str(picture)]) == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in page.parent.iterdir()} == {"report.html", "overview.png"}
    assert str(page) in capsys.readouterr().out


def test_a_bad_run_gives_one_line_and_leaves_no_file(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = make_run("broken")
    (broken / "evaluation.json").write_text("{")
    output = tmp_path / "out/report.html"
    for run in (tmp_path / "missing", broken):
        assert report.main([str(make_run()), str(run), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert str(run) in error
    assert not output.parent.exists()


def test_a_picture_that_cannot_be_drawn_leaves_no_page(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = str(make_run(passages={})), tmp_path / "report.html"
    assert report.main([run, "--output", str(output), "--picture", str(tmp_path / "overview.png")]) == 2
    assert "--picture: no run has a passage" in capsys.readouterr().err
    assert not output.exists()


def test_a_place_that_cannot_be_written_is_named(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = str(make_run()), tmp_path / "file"
    file.write_text("here first")
    for output, message in ((file / "report.html", "cannot be written"), (tmp_path, "is a folder")):
        assert report.main([run, "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
    assert report.main([run, "--output", str(file), "--picture", str(file)]) == 2
    assert "is the page itself" in capsys.readouterr().err
    assert file.read_text() == "here first"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}
