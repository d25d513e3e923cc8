"""The tools are scripts: what they import lies beside them, and tests import it the same way."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, built once."""
    import build_corpus

    folder = tmp_path_factory.mktemp("corpus") / "made"
    assert build_corpus.main(["--output", str(folder), "--limit-bytes", "600000"]) == 0
    return folder


@pytest.fixture(scope="session")
def splits(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of `corpus` by split."""
    return {file.stem: [json.loads(line) for line in file.open(encoding="utf-8")] for file in corpus.glob("*.jsonl")}
