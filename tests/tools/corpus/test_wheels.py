import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from corpus.wheels import WheelFiles, find_wheel, read_pins, wheel_sources, wheel_versions
from wmtp_core.errors import UserError

PINS = [WheelFiles("Some.Code", "1.0", False, "*.py"), WheelFiles("tables", "2.1", True, "*.po")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "some_code-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("some/module.py", "x = 'é'\r\n")
        archive.writestr("some/tests/test_module.py", "assert True\n")
        archive.writestr("some/latin.py", "é".encode("latin-1"))
        archive.writestr("some_code-1.0.dist-info/METADATA", "Name: some-code\n")
    with zipfile.ZipFile(tmp_path / "tables-2.1-cp311-cp311-manylinux_2_28_x86_64.whl", "w") as archive:
        archive.writestr("tables/de.po", "msgid\n")
        archive.writestr("tables/code.py", "y = 1\n")
    return tmp_path


def test_the_pins_are_exact_and_have_both_roles() -> None:
    pins = read_pins()
    assert len(pins) == len(set(pins)) > 10
    assert all(re.fullmatch(r"\d+(\.\d+)+", pin.version) and "*" in pin.pattern for pin in pins)
    assert {pin.natural for pin in pins} == {True, False}
    assert ("plotly", "7.1.0", True, "*plotly.min.js") in pins


def test_reads_what_the_patterns_name_out_of_wheels_that_are_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a wheel that is there was fetched"))
    assert list(wheel_sources(PINS, folder)) == [
        ("some/module.py", "x = 'é'\n", False),
        ("tables/de.po", "msgid\n", True),
    ]


def test_names_match_however_they_are_spelt_and_versions_exactly(folder: Path) -> None:
    assert find_wheel(PINS[0]._replace(name="some-code"), folder) == folder / "some_code-1.0-py3-none-any.whl"
    assert find_wheel(PINS[0]._replace(version="1.0.1"), folder) is None


def test_versions_carry_the_digest_of_the_wheel(folder: Path) -> None:
    digest = hashlib.sha256((folder / "some_code-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    assert wheel_versions(PINS, folder)["Some.Code"] == f"1.0 sha256:{digest}"


def test_a_missing_wheel_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"^wheel absent==3\.0 cannot be fetched \(.+\); put it into .+$") as caught:
        list(wheel_sources([*PINS, WheelFiles("absent", "3.0", False, "*.py")], folder))
    assert "\n" not in str(caught.value)


def test_a_torn_wheel_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tables-2.1-py3-none-any.whl").write_bytes(b"half")
    with pytest.raises(UserError, match="is not a zip file; delete it"):
        list(wheel_sources(PINS[1:], tmp_path))
