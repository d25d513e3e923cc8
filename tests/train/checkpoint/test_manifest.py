import json
import os
import shutil

import pytest

from wmtp_core import UserError
from wmtp_train.checkpoint import newest_whole_checkpoint
from wmtp_train.checkpoint.manifest import find_flaw


def flip(path, place=-1, mask=1):
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


WEIGHTS, RNG = "mp_rank_00_model_states.pt", "rng_00000.safetensors"
SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
DAMAGE = {
    "a truncated file": (lambda folder: os.truncate(folder / WEIGHTS, 100), f"{WEIGHTS} has 100 bytes, "),
    "a flipped byte": (lambda folder: flip(folder / SHARD, 5000), f"{SHARD} has another content than was saved"),
    "a flipped last bit": (lambda folder: flip(folder / RNG), f"{RNG} has another content than was saved"),
    "a missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    "a missing run.json": (lambda folder: (folder / "run.json").unlink(), "run.json is missing"),
    "another step": (lambda folder: flip(folder / "run.json", 12), "run.json has another content than was saved"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing, so this is not a"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 200), "manifest.json is broken"),
    "an odd manifest": (lambda folder: (folder / "manifest.json").write_text("[1]"), "manifest.json is broken"),
    "an empty manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json is broken"),
    "no text": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json is broken"),
    "an empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "not a checkpoint"),
}


def test_a_checkpoint_is_whole_when_it_was_saved(processes, saved):
    assert [find_flaw(path, processes) for path in sorted(saved.iterdir())] == ["", "", ""]
    assert newest_whole_checkpoint(saved, processes) == saved / "step_00000006"


def test_where_there_is_none_there_is_nothing_to_load(processes, tmp_path):
    assert newest_whole_checkpoint(tmp_path, processes) is None
    assert newest_whole_checkpoint(tmp_path / "absent", processes) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_named_and_skipped_for_the_one_before(processes, saved, capfd, damage):
    apply, flaw = DAMAGE[damage]
    newest = saved / "step_00000006"
    apply(newest)
    assert newest_whole_checkpoint(saved, processes) == saved / "step_00000004"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint {newest} is damaged: ")
    assert flaw in line
    assert sorted(path.name for path in saved.iterdir()) == ["step_00000002", "step_00000004", "step_00000006.damaged"]
    assert newest_whole_checkpoint(saved, processes) == saved / "step_00000004"
    assert capfd.readouterr().err == ""


def test_every_flipped_byte_of_the_manifest_is_found_or_means_nothing(processes, saved):
    path = saved / "step_00000006"
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 7):
        flip(manifest, place)
        try:
            same = json.loads(manifest.read_bytes()) == json.loads(whole)
        except ValueError:
            same = False
        assert (find_flaw(path, processes) == "") == same
        manifest.write_bytes(whole)


def test_two_damaged_ones_are_both_skipped(processes, saved, capfd):
    (saved / "step_00000006" / WEIGHTS).unlink()
    flip(saved / "step_00000004" / RNG)
    assert newest_whole_checkpoint(saved, processes) == saved / "step_00000002"
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_every_flaw_of_a_checkpoint_is_named(processes, saved):
    path = saved / "step_00000006"
    (path / WEIGHTS).unlink()
    flip(path / RNG)
    assert find_flaw(path, processes) == f"{WEIGHTS} is missing; {RNG} has another content than was saved"


def test_where_none_is_whole_the_run_is_refused_and_they_stay(processes, saved):
    for path in saved.iterdir():
        (path / RNG).unlink()
    with pytest.raises(UserError, match=rf"{saved}/step_00000002: {RNG} is missing; none of the 3 in the folder"):
        newest_whole_checkpoint(saved, processes)
    assert sorted(path.name for path in saved.iterdir()) == ["step_00000002", "step_00000004", "step_00000006"]


def test_a_second_damaged_one_of_a_step_takes_the_place_of_the_first(processes, saved):
    shutil.copytree(saved / "step_00000006", saved / "step_00000006.damaged")
    (saved / "step_00000006" / RNG).unlink()
    newest_whole_checkpoint(saved, processes)
    assert not (saved / "step_00000006.damaged" / RNG).exists()
