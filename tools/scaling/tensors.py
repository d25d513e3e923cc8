"""What floating-point tensors of this process hold."""

import gc

import torch


def float_storages() -> dict[int, torch.UntypedStorage]:
    """By address, the storages of all that Python can reach; whoever keeps them keeps their addresses from others."""
    gc.collect()
    storages = {}
    for tensor in gc.get_objects():
        # isinstance would ask torch's lazy attributes for their class; other classes are what a compiler leaves.
        if type(tensor) in (torch.Tensor, torch.nn.Parameter):
            for held in (tensor, tensor.grad if tensor.is_leaf else None):
                if held is not None and held.is_floating_point():
                    storages[held.untyped_storage().data_ptr()] = held.untyped_storage()
    return storages


def new_bytes(before: dict[int, torch.UntypedStorage]) -> int:
    """Of the storages that were not there before."""
    return sum(storage.nbytes() for address, storage in float_storages().items() if address not in before)
