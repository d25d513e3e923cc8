"""A run of several processes that is killed and goes on, with as many or another number of them."""

import shutil

import pytest
import torch
from ranks_that_train import draw, train
from safetensors.torch import load_file

from ranks import on_ranks

pytestmark = pytest.mark.slow


def model(folder):
    return load_file(folder / "model" / "model.safetensors")


def rows_of(results):
    """The rows of each step, over all ranks."""
    steps = sorted({step for _, rows in results for step in rows})
    return {step: sorted(row for _, rows in results for row in rows[step]) for step in steps}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_run_goes_on_to_the_bit_or_with_another_number_of_processes(
    make_settings, write_deepspeed, tmp_path, stage
):
    changes = {"algo": "rho1-wmtp", "steps": 4, "save_every": 2, "optimizer": {"learning_rate": 1e-3}}
    changes["deepspeed_config"] = write_deepspeed(stage=stage)
    whole = on_ranks(tmp_path, 2, train, make_settings("whole", **changes))
    on_ranks(tmp_path, 2, train, make_settings("killed", **changes), 3, exits=[-9, -9])
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")

    again = on_ranks(tmp_path, 2, train, make_settings("killed", resume=True, **changes))
    assert [metrics for metrics, _ in again] == [metrics for metrics, _ in whole]
    expected, found = model(tmp_path / "whole"), model(tmp_path / "killed")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    alone = on_ranks(tmp_path, 1, train, make_settings("alone", resume=True, **changes))
    for name, value in model(tmp_path / "alone").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)
    last_two = {step: rows for step, rows in rows_of(whole).items() if step >= 2}
    assert rows_of(again) == rows_of(alone) == last_two
    assert [len(rows) for rows in last_two.values()] == [4, 4]


def test_ranks_begin_with_the_same_weights_and_draw_each_for_itself(make_settings, tmp_path):
    settings = make_settings(algo="mtp-baseline", data={"evaluate": {}})
    (one, one_torch, first), (other, other_torch, second) = on_ranks(tmp_path, 2, draw, settings)
    assert len({one, one_torch, other, other_torch}) == 4
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    (again,) = on_ranks(tmp_path, 1, draw, settings)
    assert again[:2] == (one, one_torch)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, again[2], strict=True))


def test_another_global_batch_goes_on_in_the_data_where_it_stopped(make_settings, write_deepspeed, tmp_path):
    changes = {"algo": "mtp-baseline", "data": {"evaluate": {}}}
    each = write_deepspeed(train_micro_batch_size_per_gpu=2)
    first = on_ranks(tmp_path, 2, train, make_settings(steps=2, deepspeed_config=each, **changes))
    second = on_ranks(tmp_path, 1, train, make_settings(steps=4, resume=True, deepspeed_config=each, **changes))
    unbroken = on_ranks(tmp_path, 1, train, make_settings("other", steps=6, deepspeed_config=each, **changes))

    def in_order(run):
        return [row for _, rows in run for step in sorted(rows) for row in rows[step]]

    assert [len(rows) for rows in rows_of(first).values()] == [4, 4]
    assert in_order(second) == in_order(unbroken)[8:]
    assert sorted(in_order(first)) == sorted(in_order(unbroken)[:8])
