"""Resume with another number of processes, at every ZeRO stage: the state to the bit, and what follows to rounding.

With as many processes: test_loading.py, and the runs of test_trainer_worlds.py.
"""

import pytest
import torch
from jobs import go_on, save_after

from ranks import on_ranks

pytestmark = pytest.mark.slow


def differences(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("before", "after", "train"), [(2, 1, "all"), (1, 2, "all"), (4, 2, "all"), (2, 1, "heads"), (1, 2, "heads")]
)
def test_another_number_of_processes_goes_on_where_the_first_stopped(tiny_llama, tmp_path, stage, before, after, train):
    saved, unbroken, rate = on_ranks(tmp_path, before, save_after, tiny_llama, stage, tmp_path / "c", train)[0]
    results = on_ranks(tmp_path, after, go_on, tiny_llama, stage, tmp_path / "c", train)
    for loaded, end, rate_at_end, _, _ in results:
        assert differences(loaded, saved) == []
        assert rate_at_end == rate
        for name, value in end.items():
            torch.testing.assert_close(value, unbroken[name], rtol=0, atol=1e-6, msg=name)
    assert differences(saved, unbroken)
    draws = [drawn for *_, drawn in results]
    assert len({tuple(drawn.tolist()) for drawn in draws}) == after
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize(("fused_before", "fused_after"), [(True, True), (False, True), (True, False)])
def test_so_it_does_with_the_fused_optimizer_of_an_accelerator(tiny_llama, tmp_path, stage, fused_before, fused_after):
    """Of which a checkpoint of either form can go on in the other."""
    how = (tiny_llama, stage, tmp_path / "c", "all")
    saved, unbroken, _ = on_ranks(tmp_path, 2, save_after, *how, fused_before)[0]
    loaded, end, *_ = on_ranks(tmp_path, 1, go_on, *how, fused_after)[0]
    assert differences(loaded, saved) == []
    for name, value in end.items():
        torch.testing.assert_close(value, unbroken[name], rtol=0, atol=1e-6, msg=name)
