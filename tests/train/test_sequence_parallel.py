"""Runs whose processes share rows: evaluated, saved and gone on with as others are, and refused where they cannot."""

import json
import shutil

import pytest
import torch
from ranks_that_train import train
from safetensors.torch import load_file

from ranks import on_ranks

pytestmark = pytest.mark.slow


@pytest.fixture
def alike(make_settings, write_deepspeed):
    """Settings of runs of four steps that differ in how many processes share a row."""

    def make(output, sharing, **changes):
        name = f"shared-by-{sharing}.json"
        config = write_deepspeed(name, stage=2, train_batch_size=4, sequence_parallel_size=sharing)
        optimizer = {"learning_rate": 1e-3}
        return make_settings(output, deepspeed_config=config, steps=4, save_every=2, optimizer=optimizer, **changes)

    return make


def results(folder):
    return load_file(folder / "model/model.safetensors"), json.loads((folder / "passages.json").read_text())


def test_a_run_goes_on_to_the_bit_and_as_one_of_whole_rows(alike, tmp_path):
    (alone, rows), *_ = on_ranks(tmp_path, 1, train, alike("alone", 1))
    shared = on_ranks(tmp_path, 2, train, alike("shared", 2))
    assert [seen for _, seen in shared] == [rows, rows]
    assert shared[0][0] == shared[1][0] == pytest.approx(alone, rel=1e-5)
    whole, passages = results(tmp_path / "alone")
    weights, same_passages = results(tmp_path / "shared")
    assert same_passages == passages
    for name, weight in whole.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6, msg=name)

    on_ranks(tmp_path, 2, train, alike("killed", 2), 3, exits=[-9, -9])
    for name in ("by-1", "apart"):
        shutil.copytree(tmp_path / "killed", tmp_path / name)
    last_two = {step: seen for step, seen in rows.items() if step >= 2}
    again = on_ranks(tmp_path, 2, train, alike("killed", 2, resume=True))
    assert [metrics for metrics, _ in again] == [metrics for metrics, _ in shared]
    assert [seen for _, seen in again] == [last_two, last_two]
    for name, weight in results(tmp_path / "killed")[0].items():
        assert torch.equal(weight, weights[name]), name
    for output, world in (("by-1", 1), ("apart", 2)):
        found = on_ranks(tmp_path, world, train, alike(output, 1, resume=True))
        assert {step: sorted(row for _, seen in found for row in seen[step]) for step in found[0][1]} == {
            step: sorted(seen) for step, seen in last_two.items()
        }
        for name, weight in results(tmp_path / output)[0].items():
            torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-6, msg=name)


REFUSED = [
    ({"model": {"horizon": 2, "config": {"model_type": "mamba"}}, "data": {"packing": False}}, "documents see each"),
    ({"objective": "distill"}, "with sequence_parallel_size 2 these may lie on another process: remove sequence_para"),
    ({"data": {"sequence_length": 33}}, "data.sequence_length is 33, which sequence_parallel_size 2 does not divide"),
]


@pytest.mark.parametrize(("changes", "problem"), REFUSED, ids=["mamba", "distill", "length"])
def test_what_cannot_share_rows_ends_in_one_line(alike, tmp_path, changes, problem):
    first, second = on_ranks(tmp_path, 2, train, alike("refused", 2, algo="mtp-baseline", **changes))
    assert problem in first
    assert "\n" not in first
    assert second == 2
