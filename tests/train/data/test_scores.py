import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from separate_ranks import score

from wmtp_core.errors import UserError
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.scores import COLUMN_FILE, FINGERPRINT_FILE, load_scores, partial_folder

Prepare = Callable[..., PreparedData]


@pytest.fixture
def folder(tmp_path: Path, prepared: PreparedData) -> Path:
    score(prepared, lambda batch: batch.input_ids / 100, tmp_path / "scores", "r" * 64, 0, 1, micro_batch=2)
    return tmp_path / "scores"


def test_scores_lie_beside_their_tokens(folder: Path, prepared: PreparedData) -> None:
    scores = load_scores(folder, prepared, "r" * 64)
    assert scores.column_names == ["reference_ce"]
    assert len(scores) == len(prepared.rows)
    inside = torch.tensor(scores[:]["reference_ce"]) != 0
    values = torch.tensor(scores[:]["reference_ce"])[inside]
    assert torch.equal(values, torch.tensor(prepared.rows[:]["input_ids"])[inside] / 100)
    assert load_scores(folder, prepared)[:] == scores[:]


def test_scores_of_something_else_are_refused_by_the_part_that_differs(
    folder: Path, prepared: PreparedData, make_prepared: Prepare
) -> None:
    texts = [{"text": f"alpha {n} beta " * (1 + n % 4)} for n in range(10)]
    assert make_prepared(*texts).fingerprint == prepared.fingerprint
    for part, other in [
        ("corpus", make_prepared(*texts[:-1])),
        ("packing", make_prepared(*texts, seed=1)),
        ("packing", make_prepared(*texts, sequence_length=9)),
    ]:
        with pytest.raises(UserError, match=rf"scores .*: they were made with another {part} .*wmtp score"):
            load_scores(folder, other)
    prepared.fingerprint["tokenizer"] = "0" * 64
    with pytest.raises(UserError, match="another tokenizer"):
        load_scores(folder, prepared)


def test_scores_of_another_reference_are_refused(folder: Path, prepared: PreparedData) -> None:
    with pytest.raises(UserError, match=r"another reference \(rrrrrrrrrrrr, not qqqqqqqqqqqq\)"):
        load_scores(folder, prepared, "q" * 64)


def test_folders_without_scores(tmp_path: Path, prepared: PreparedData) -> None:
    with pytest.raises(UserError, match=r"scores .*scores: no such folder: .*wmtp score"):
        load_scores(tmp_path / "scores", prepared)
    partial_folder(tmp_path / "scores").mkdir()
    with pytest.raises(UserError, match="they are unfinished"):
        load_scores(tmp_path / "scores", prepared)
    with pytest.raises(UserError, match=r"holds no fingerprint\.json"):
        load_scores(prepared.path, prepared)


@pytest.mark.parametrize("content", [b"", b'{"corp', b"\xff", b"[1]"])
def test_a_fingerprint_that_is_damaged_is_named(folder: Path, prepared: PreparedData, content: bytes) -> None:
    (folder / FINGERPRINT_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"scores/fingerprint\.json: damaged: remove the folder, and score again with"):
        load_scores(folder, prepared)


def test_scores_that_were_cut_off_are_refused(folder: Path, prepared: PreparedData) -> None:
    os.truncate(folder / COLUMN_FILE, 200)
    with pytest.raises(UserError, match=r"reference_ce\.arrow: .*damaged.*: remove the folder, and score again with"):
        load_scores(folder, prepared)
