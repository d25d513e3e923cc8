import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from separate_ranks import score
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_train.data import scoring
from wmtp_train.data.batch import Batch
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.scores import load_scores


def losses(batch: Batch) -> Tensor:
    """Not 0 anywhere, and another number for every token of the data."""
    return 1 + batch.row_ids[:, None] + torch.arange(batch.input_ids.shape[1]) / 16


class Killed(Exception):
    """Stands for a kill: score must not catch it."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SHARD_ROWS", 3)


def expected(prepared: PreparedData) -> list[list[float]]:
    table = []
    for index, row in enumerate(prepared.rows):
        values: list[float] = []
        for length, document in zip(row["document_lengths"], row["document_ids"], strict=True):
            for place in range(length):
                scored = place > 0 and document >= 0
                values.append(1 + index + len(values) / 16 if scored else 0.0)
        table.append(values)
    return table


def stored(output: Path, prepared: PreparedData) -> list[list[float]]:
    return load_scores(output, prepared, "reference")[:]["reference_ce"]


def test_one_process(tmp_path: Path, prepared: PreparedData) -> None:
    assert len(prepared.rows) > 6
    assert prepared.rows[-1]["document_ids"][-1] == -1
    told: list[tuple[int, int]] = []
    score(prepared, losses, tmp_path / "s", "reference", 0, 1, 2, progress=lambda *numbers: told.append(numbers))
    assert stored(tmp_path / "s", prepared) == expected(prepared)
    assert told[-1] == (len(prepared.rows),) * 2
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["fingerprint.json", "reference_ce.arrow"]
    assert not (tmp_path / "s.partial").exists()


def test_finished_scores_are_not_made_again(tmp_path: Path, prepared: PreparedData) -> None:
    score(prepared, losses, tmp_path / "s", "reference", 0, 1, 2)
    score(prepared, pytest.fail, tmp_path / "s", "reference", 0, 1, 2)
    with pytest.raises(UserError, match="another reference"):
        score(prepared, pytest.fail, tmp_path / "s", "elsewhere", 0, 1, 2)


@pytest.mark.parametrize("killed_at", [0, 1, 2, 4])
def test_a_kill_costs_at_most_one_shard(tmp_path: Path, prepared: PreparedData, killed_at: int) -> None:
    seen: list[int] = []

    def dying(batch: Batch) -> Tensor:
        if len(seen) >= killed_at:
            raise Killed
        seen.extend(batch.row_ids.tolist())
        return losses(batch)

    def remembering(batch: Batch) -> Tensor:
        seen.extend(batch.row_ids.tolist())
        return losses(batch)

    with pytest.raises(Killed):
        score(prepared, dying, tmp_path / "s", "reference", 0, 1, 1)
    with pytest.raises(UserError, match="they are unfinished"):
        load_scores(tmp_path / "s", prepared)
    with pytest.raises(UserError, match=r"s\.partial: they were made with another reference"):
        score(prepared, losses, tmp_path / "s", "elsewhere", 0, 1, 1)
    score(prepared, remembering, tmp_path / "s", "reference", 0, 1, 1)
    assert stored(tmp_path / "s", prepared) == expected(prepared)
    assert len(seen) - len(prepared.rows) == killed_at % 3


def test_a_kill_while_shards_are_joined_costs_nothing(
    tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "commit_dir_once", die)
        with pytest.raises(Killed):
            score(prepared, losses, tmp_path / "s", "reference", 0, 1, 2)
    score(prepared, pytest.fail, tmp_path / "s", "reference", 0, 1, 2)
    assert stored(tmp_path / "s", prepared) == expected(prepared)


def test_all_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}/"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    score(prepared, losses, tmp_path / "s", "reference", 0, 1, 2)
    inside = "s.partial/complete"
    assert synced[-5:] == [
        f"{inside}/reference_ce.arrow",
        f"{inside}/.fingerprint.json.partial",
        inside,  # the rename of fingerprint.json
        inside,
        str(tmp_path),
    ]


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_scored(
    tmp_path: Path, prepared: PreparedData, small_disk: Callable[[Path, str], None]
) -> None:
    folder = tmp_path / "disk"
    small_disk(folder, "size=100k")

    def filling(batch: Batch) -> Tensor:
        if 3 in batch.row_ids:
            room = os.statvfs(folder)
            (folder / "else").write_bytes(bytes(room.f_bavail * room.f_frsize))
        return losses(batch)

    with pytest.raises(UserError, match=r"^scores .*/disk/s cannot be written: .*no space left on device; make room"):
        score(prepared, filling, folder / "s", "reference", 0, 1, 1)
    (folder / "else").unlink()
    rows: list[int] = []

    def remembering(batch: Batch) -> Tensor:
        rows.extend(batch.row_ids.tolist())
        return losses(batch)

    score(prepared, remembering, folder / "s", "reference", 0, 1, 1)
    assert min(rows) == 3
    assert stored(folder / "s", prepared) == expected(prepared)


def test_ranks_one_after_the_other(tmp_path: Path, prepared: PreparedData) -> None:
    with pytest.raises(UserError, match=r"of \d+ shards are missing, such as rows-0000000003-0000000006\.arrow"):
        score(prepared, losses, tmp_path / "s", "reference", 0, 2, 2)
    score(prepared, losses, tmp_path / "s", "reference", 1, 2, 2)
    score(prepared, pytest.fail, tmp_path / "s", "reference", 0, 2, 2)
    assert stored(tmp_path / "s", prepared) == expected(prepared)


@pytest.mark.slow
def test_two_ranks_of_torch_distributed_at_once(two_ranks: Path, tmp_path: Path) -> None:
    prepared = PreparedData.load((two_ranks / "prepared-0").read_text())
    assert stored(two_ranks / "scores", prepared) == expected(prepared)
    counts = [int((two_ranks / f"scored-{rank}").read_text()) for rank in range(2)]
    assert min(counts) > 0
    assert sum(counts) == len(prepared.rows)


def test_two_ranks_in_lockstep_make_as_many_forwards(two_ranks: Path) -> None:
    prepared = PreparedData.load((two_ranks / "prepared-0").read_text())
    assert stored(two_ranks / "scores-in-step", prepared) == expected(prepared)
    shards = [range(start, min(start + 3, len(prepared.rows))) for start in range(0, len(prepared.rows), 3)]
    owed = [sum(-(-len(shard) // 2) for shard in shards[rank::2]) for rank in (0, 1)]
    assert owed[0] > owed[1]
    assert [int((two_ranks / f"in-step-{rank}").read_text()) for rank in (0, 1)] == [owed[0]] * 2


def test_half_precision_is_within_its_error(tmp_path: Path, prepared: PreparedData) -> None:
    score(prepared, lambda batch: losses(batch) / 3, tmp_path / "s", "reference", 0, 1, 2, dtype="float16")
    scores = load_scores(tmp_path / "s", prepared)
    assert scores.features["reference_ce"].feature.dtype == "float16"
    exact = torch.tensor(expected(prepared)) / 3
    assert ((torch.tensor(scores[:]["reference_ce"]) - exact).abs() <= exact * 2**-11).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_row(tmp_path: Path, prepared: PreparedData, value: float) -> None:
    def broken(batch: Batch) -> Tensor:
        return torch.where(batch.row_ids[:, None] == 4, value, losses(batch))

    with pytest.raises(UserError, match="its loss is not finite in row 4 of the data"):
        score(prepared, broken, tmp_path / "s", "reference", 0, 1, 2)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, prepared: PreparedData) -> None:
    before = sorted(path.name for path in prepared.path.iterdir())
    with pytest.raises(UserError, match="no score folder"):
        score(prepared, losses, prepared.path, "reference", 0, 1, 2)
    assert sorted(path.name for path in prepared.path.iterdir()) == before


@pytest.mark.parametrize("other", [{"dtype": "float16"}, {"computed_in": "bfloat16"}])
def test_scores_of_another_precision_are_refused_and_never_mixed(
    tmp_path: Path, prepared: PreparedData, other: dict[str, str]
) -> None:
    score(prepared, losses, tmp_path / "s", "reference", 0, 1, 2)
    with pytest.raises(UserError, match=f"another {next(iter(other))} "):
        score(prepared, pytest.fail, tmp_path / "s", "reference", 0, 1, 2, **other)
