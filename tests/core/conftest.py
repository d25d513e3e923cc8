"""What the tests of wmtp-core share: an independent oracle, a witness of tensor operations, and two real ranks."""

import importlib.util
from pathlib import Path

import pytest
import torch
from ranks_that_weigh import weigh
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ranks import on_ranks

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def oracle():
    spec = importlib.util.spec_from_file_location("wmtp_core_oracle", HERE / "oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OperationWitness(TorchDispatchMode):
    """Sees every operation below autograd: its name, its inputs' shapes, and what it leaves alive.

    `calls` are (name, shapes of the tensor inputs); `largest` is the most elements of one result; `most_alive` is the
    most bytes that results with `columns` columns held at once; `indexed_by_masks`: the host had to
    count what a mask holds.
    """

    def __init__(self, columns=None):
        super().__init__()
        self.columns, self.calls, self.largest, self.most_alive = columns, [], 0, 0
        self._alive, self.indexed_by_masks = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        self.calls.append((func.overloadpacket.__name__, [tuple(x.shape) for x in inputs]))
        if func.overloadpacket.__name__.startswith("index"):
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor)]
            self.indexed_by_masks |= any(x.dtype == torch.bool for x in indices)
        results = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in inputs}
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.numel())
                storage = result.untyped_storage()
                if result.shape[-1:] == (self.columns,) and storage._cdata not in given:  # new, not a view
                    self._alive.append((StorageWeakRef(storage), storage.nbytes()))
        self._alive = [(reference, size) for reference, size in self._alive if not reference.expired()]
        self.most_alive = max(self.most_alive, sum(size for _, size in self._alive))
        return results

    def rows_multiplied(self, columns):
        """Rows of all matrix products `[rows, ·] @ [·, columns]`."""
        return sum(s[0][0] for name, s in self.calls if name == "mm" and s[1][1] == columns)

    def names(self):
        return {name for name, _ in self.calls}


@pytest.fixture
def witness():
    return OperationWitness


@pytest.fixture
def over_two_ranks(tmp_path):
    """Run `(rule, (signals of rank 0, signals of rank 1))` jobs on two ranks: both's weights, or counts."""

    def run(jobs, what="weights"):
        return list(zip(*on_ranks(tmp_path, 2, weigh, what, jobs), strict=True))

    return run
