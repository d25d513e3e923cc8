import errno
import json
import os

import pytest
import torch
from jobs import die_while_saving, go_on, save_on_a_small_disk

from ranks import on_ranks
from wmtp_core import UserError
from wmtp_train.checkpoint import newest_checkpoint, save_checkpoint
from wmtp_train.checkpoint.manifest import find_flaw
from wmtp_train.checkpoint.retention import complete_checkpoints
from wmtp_train.checkpoint.saving import versions


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_says_what_wrote_it(processes, make_engine, tmp_path):
    save_checkpoint(make_engine(stage=2), processes, tmp_path, 7, {"note": "mine"}, keep=1)
    about = json.loads((tmp_path / "step_00000007" / "run.json").read_text())
    assert about == {"note": "mine", "step": 7, "world_size": 1, "stage": 2, "versions": versions()}
    assert versions()["torch"] == torch.__version__


def test_it_holds_its_files_and_nothing_lies_beside_it(processes, make_engine, tmp_path):
    save_checkpoint(make_engine(), processes, tmp_path, 7, {}, keep=1)
    assert names(tmp_path) == ["step_00000007"]
    assert names(tmp_path / "step_00000007") == [
        "manifest.json",
        "mp_rank_00_model_states.pt",
        "rng_00000.safetensors",
        "run.json",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ]


def test_saving_a_step_twice_leaves_the_first(processes, make_engine, tmp_path):
    engine = make_engine()
    save_checkpoint(engine, processes, tmp_path, 1, {}, keep=1)
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    save_checkpoint(engine, processes, tmp_path, 1, {}, keep=1)
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before


def test_an_older_one_goes_only_when_the_new_one_is_current(processes, make_engine, tmp_path, monkeypatch):
    engine, seen = make_engine(), []
    save_checkpoint(engine, processes, tmp_path, 1, {}, keep=1)
    monkeypatch.setattr(
        "wmtp_train.checkpoint.saving.rotate",
        lambda *_: seen.append((names(tmp_path), find_flaw(tmp_path / "step_00000002", processes))),
    )
    save_checkpoint(engine, processes, tmp_path, 2, {}, keep=1)
    assert seen == [(["step_00000001", "step_00000002"], "")]


def test_an_older_one_that_cannot_be_removed_ends_nothing(processes, make_engine, tmp_path, monkeypatch, capfd):
    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "step_00000001")

    engine = make_engine()
    monkeypatch.setattr("wmtp_train.checkpoint.saving.rotate", refused)
    save_checkpoint(engine, processes, tmp_path, 2, {}, keep=1)
    assert find_flaw(tmp_path / "step_00000002", processes) == ""
    line = f"warning: checkpoints older than {tmp_path}/step_00000002 cannot be removed: step_00000001: read-only file"
    assert capfd.readouterr().err.startswith(line)


def test_what_a_kill_left_is_swept_away(processes, make_engine, tmp_path):
    (tmp_path / ".step_00000009.partial").mkdir()
    (tmp_path / ".step_00000001.discarded.partial").mkdir()
    save_checkpoint(make_engine(), processes, tmp_path, 2, {}, keep=1)
    assert names(tmp_path) == ["step_00000002"]


def test_a_full_disk_is_one_line_and_spares_what_is_there(processes, make_engine, tmp_path, small_disk):
    engine, folder = make_engine(), tmp_path / "disk"
    small_disk(folder, "size=400k")
    save_checkpoint(engine, processes, folder, 1, {}, keep=3)
    (folder / "else").write_bytes(bytes(os.statvfs(folder).f_bavail * 4096 - 30_000))
    with pytest.raises(UserError) as error:
        save_checkpoint(engine, processes, folder, 2, {}, keep=9)
    (folder / "else").unlink()
    line = str(error.value)
    assert line.startswith(f"checkpoint {folder}/step_00000002 cannot be saved: {folder}/.step_00000002.partial/")
    assert "no space left on device" in line
    assert "\n" not in line
    assert names(folder) == ["step_00000001"]
    assert find_flaw(folder / "step_00000001", processes) == ""


def test_a_read_only_folder_is_one_line(processes, make_engine, tmp_path, small_disk):
    small_disk(tmp_path / "disk", "ro")
    with pytest.raises(UserError, match=r"checkpoint .*/disk/step_00000001 cannot be saved: .*read-only file system"):
        save_checkpoint(make_engine(), processes, tmp_path / "disk", 1, {}, keep=1)


@pytest.mark.slow
@pytest.mark.parametrize("limited", [0, 1])
def test_a_rank_that_cannot_write_ends_both_with_one_line(tiny_llama, tmp_path, limited):
    folder = tmp_path / "c"
    line, code = on_ranks(tmp_path, 2, save_on_a_small_disk, tiny_llama, folder, limited)
    prefix = f"rank {limited}: " if limited else ""
    assert line.startswith(
        f"{prefix}checkpoint {folder}/step_00000004 cannot be saved: {folder}/.step_00000004.partial/"
    )
    assert "file too large" in line
    assert code == 2
    assert names(folder) == ["step_00000002"]
    assert [name for *_, name, _ in on_ranks(tmp_path, 2, go_on, tiny_llama, 1, folder)] == ["step_00000002"] * 2


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_that_loads(processes, tiny_llama, make_engine, tmp_path):
    (changes,) = on_ranks(tmp_path, 1, die_while_saving, tiny_llama, tmp_path / "whole", 10**6)
    assert changes > 10
    loaded = []
    for change in range(1, changes + 1):
        folder = tmp_path / f"killed_{change}"
        on_ranks(tmp_path, 1, die_while_saving, tiny_llama, folder, change, exits=[-9])
        assert [find_flaw(path, processes) for path in complete_checkpoints(folder)] in ([""], ["", ""])
        loaded.append(newest_checkpoint(folder).name)
        save_checkpoint(make_engine(), processes, folder, 6, {}, keep=1)
        assert names(folder) == ["step_00000006"]
    assert loaded == sorted(loaded)
    assert set(loaded) == {"step_00000002", "step_00000004"}


@pytest.mark.slow
def test_a_peer_that_is_killed_in_a_save_leaves_one_too(tiny_llama, tmp_path):
    on_ranks(tmp_path, 2, die_while_saving, tiny_llama, tmp_path / "c", 3, 1, exits=[1, -9])
    assert [name for *_, name, _ in on_ranks(tmp_path, 2, go_on, tiny_llama, 1, tmp_path / "c")] == [
        "step_00000002"
    ] * 2
