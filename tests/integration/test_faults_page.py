"""docs/faults.md promises nothing without a test."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_a_test_that_exists():
    page = (ROOT / "docs/faults.md").read_text()
    named = re.findall(r"`(\w[\w/]*\.py)::(test_\w+)`", page)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    for row in re.findall(r"^\| .* \| .* \| (.*) \|$", page, flags=re.MULTILINE):
        assert row == "test" or "::" in row or row.startswith("the same test"), row
