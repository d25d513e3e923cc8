import pytest
import torch
from ranks_that_share import share

from ranks import on_ranks


def test_a_mesh_of_one_meets_itself(processes):
    assert processes.all_gather_object("mine") == ["mine"]
    assert processes.broadcast_object("mine") == "mine"
    assert processes.all_gather(torch.arange(3)).tolist() == [[0, 1, 2]]
    counted = torch.tensor([2.0])
    assert processes.all_reduce(counted) is counted
    assert counted.item() == 2
    processes.barrier()
    assert processes.share_rows(1) is processes


@pytest.mark.slow
def test_neighbors_share_rows_and_exchange_their_slices(tmp_path):
    for rank, found in enumerate(on_ranks(tmp_path, 4, share)):
        assert found.pop("place") == (rank // 2, 2)
        assert found.pop("over rows") == [rank % 2, rank % 2 + 2]
        assert found.pop("of everyone") == [0, 1, 2, 3]
        assert all(found.values()), (rank, found)
