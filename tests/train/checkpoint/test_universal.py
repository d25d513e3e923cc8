"""What the load on another number of processes says of a full disk; what it loads: test_worlds.py."""

import os

import pytest
from jobs import learn

from wmtp_core import UserError
from wmtp_train.checkpoint import save_checkpoint
from wmtp_train.checkpoint.manifest import find_flaw
from wmtp_train.engines.deepspeed.universal import load_resharded


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk_is_one_line_and_spares_the_checkpoint(processes, make_engine, tmp_path, small_disk, stage, room):
    engine, folder = make_engine(stage=stage), tmp_path / "disk"
    small_disk(folder, "size=2m")
    learn(engine, processes, 0, 2)
    save_checkpoint(engine, processes, folder, 2, {}, keep=1)
    (folder / "else").write_bytes(bytes(os.statvfs(folder).f_bavail * 4096 - room))
    path = folder / "step_00000002"
    with pytest.raises(UserError, match=rf"^checkpoint {path} cannot be converted to another world size: .*make room"):
        load_resharded(make_engine(stage=stage)._engine, path, 1, processes)
    assert sorted(entry.name for entry in folder.iterdir()) == ["else", "step_00000002"]
    assert find_flaw(path, processes) == ""
