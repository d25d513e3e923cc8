import numpy as np
import pytest

from wmtp_train.data.packed.order import permutation, stream_rows


def test_permutation_is_one_and_depends_on_seed_and_stream() -> None:
    orders = [permutation(1000, seed, stream) for seed in (0, 1) for stream in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in orders}) == 4


def test_permutation_is_the_same_for_ever() -> None:
    """Or a run that goes on after an upgrade would see other data: never fix these numbers."""
    assert permutation(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(8, 7, 3).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


@pytest.mark.parametrize("num_rows", [1, 3, 10])
def test_every_epoch_of_the_stream_holds_each_row_once_in_an_order_of_its_own(num_rows: int) -> None:
    epochs = stream_rows(num_rows, 5, 0, 20 * num_rows).reshape(20, num_rows)
    assert (np.sort(epochs, axis=1) == np.arange(num_rows)).all()
    if num_rows == 10:
        assert len({epoch.tobytes() for epoch in epochs}) == 20


def test_a_cut_of_the_stream_is_part_of_the_whole() -> None:
    whole = stream_rows(7, 2, 0, 100)
    for start, stop in [(0, 1), (6, 8), (13, 60), (99, 100)]:
        assert stream_rows(7, 2, start, stop).tolist() == whole[start:stop].tolist()
