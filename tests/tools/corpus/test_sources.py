import importlib.util

import pytest

from corpus import sources
from corpus.sources import decode, installed_sources, installed_versions, wanted
from wmtp_core.errors import UserError


@pytest.mark.parametrize("path", ["json/decoder.py", "sympy/core/add.py", "unittest/case.py", "sympy/testing/x.py"])
def test_ordinary_modules_are_wanted(path: str) -> None:
    assert wanted(path)


@pytest.mark.parametrize(
    "path",
    [
        "site-packages/torch/x.py",
        "dist-packages/x.py",
        "test/test_ast.py",
        "sympy/core/tests/test_add.py",
        "idlelib/run.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "sitecustomize.py",
    ],
)
def test_tests_and_files_of_one_machine_are_not(path: str) -> None:
    assert not wanted(path)


def test_installed_sources_hold_the_three_and_no_path_of_this_machine() -> None:
    files = {file.path: file for file in installed_sources()}
    assert {"json/decoder.py", "sympy/core/add.py", "networkx/classes/graph.py"} <= set(files)
    assert "class Add(" in files["sympy/core/add.py"].text
    assert all(wanted(path) and not path.startswith("/") and not file.natural for path, file in files.items())
    assert len({path.partition("/")[0] for path in files}) > 100


def test_versions_are_those_of_what_is_read() -> None:
    assert set(installed_versions()) == {"python", "sympy", "networkx"}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("no_such_package_at_all") is None
    monkeypatch.setattr(sources, "PACKAGES", ("no_such_package_at_all",))
    with pytest.raises(UserError, match="'no_such_package_at_all' is not installed; run `pip install"):
        list(installed_sources())


def test_decode_gives_plain_newlines_or_nothing() -> None:
    assert decode("é\r\nb\rc\n".encode()) == "é\nb\nc\n"
    assert decode("é".encode("latin-1")) is None
