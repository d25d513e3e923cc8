import json
from pathlib import Path
from typing import Any

import pytest

from wmtp_core import UserError
from wmtp_lab.experiment.preparation import write_generated


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_generated_text_is_whole_documents_without_labels(tmp_path: Path) -> None:
    rows = [
        {"text": "code", "noise": [], "reward": 1.0},
        {"text": "table é", "noise": [[0, 7, "natural"]], "reward": None},
        {"text": "code log", "noise": [[5, 8, "log"]], "reward": 1.0},
    ]
    write_generated(write(tmp_path / "noisy.jsonl", rows), tmp_path / "generated.jsonl")
    assert [json.loads(line) for line in (tmp_path / "generated.jsonl").open()] == [{"text": "table é"}]


def test_a_corpus_without_any_is_too_small(tmp_path: Path) -> None:
    noisy = write(tmp_path / "noisy.jsonl", [{"text": "code", "noise": []}])
    with pytest.raises(UserError, match=r"holds no generated files; raise corpus\.limit_bytes"):
        write_generated(noisy, tmp_path / "generated.jsonl")
