import torch


def test_a_mesh_of_one_meets_itself(processes):
    assert processes.all_gather_object("mine") == ["mine"]
    assert processes.broadcast_object("mine") == "mine"
    assert processes.all_gather(torch.arange(3)).tolist() == [[0, 1, 2]]
    counted = torch.tensor([2.0])
    assert processes.all_reduce(counted) is counted
    assert counted.item() == 2
    processes.barrier()
