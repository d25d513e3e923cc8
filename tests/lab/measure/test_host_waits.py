"""Each kind of wait is counted where it happens, and what does not wait is not."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from wmtp_lab.measure.host_waits import HostWaits

X = torch.tensor([1.0, 2.0, 3.0])
IDS = torch.tensor([0, 1, 1])
MASK = torch.tensor([True, False, True])
HOST = torch.tensor([1, 2, 3])
DEVICE = torch.device("cpu")


def set_masked(values):
    X.clone()[MASK] = values


def set_first(value):
    X.clone()[0] = value


WAITING = [
    ("_local_scalar_dense", lambda: X[0].item()),
    ("_local_scalar_dense", lambda: float(X.sum())),
    ("_local_scalar_dense", lambda: int(IDS[0])),
    ("_local_scalar_dense", lambda: 1 if (X > 0).all() else 2),
    ("_local_scalar_dense", lambda: f"{X[0]:.3f}"),
    ("_local_scalar_dense", lambda: X[IDS[1]]),
    ("_local_scalar_dense", lambda: X[: IDS[1]]),
    ("_local_scalar_dense", lambda: X.split([IDS[1], 2])),
    ("_local_scalar_dense", lambda: torch.is_nonzero(X[0])),
    ("_local_scalar_dense", lambda: int(torch.arange(3, device=DEVICE)[1])),
    ("equal", lambda: torch.equal(X, X)),
    ("allclose", lambda: torch.allclose(X, X)),
    ("nonzero", lambda: MASK.nonzero()),
    ("nonzero", lambda: torch.where(MASK)),
    ("nonzero", lambda: torch.argwhere(MASK)),
    ("masked_select", lambda: X.masked_select(MASK)),
    ("index", lambda: X[MASK]),
    ("index", lambda: X[[0, 1]]),
    ("index_put_", lambda: set_masked(X[:2])),
    ("_unique2", lambda: X.unique()),
    ("unique_consecutive", lambda: X.unique_consecutive()),
    ("bincount", lambda: IDS.bincount()),
    ("repeat_interleave", lambda: X.repeat_interleave(IDS)),
    ("tolist", lambda: X.tolist()),
    ("numpy", lambda: np.asarray(X)),
    ("cpu", lambda: X.cpu().tolist()),
    ("to cpu", lambda: X.to("cpu")),
    ("tensor", lambda: torch.tensor([1.0], device=DEVICE)),
    ("as_tensor", lambda: torch.as_tensor(1.0, device=DEVICE)),
    ("synchronize", lambda: torch.cuda.synchronize()),
    ("synchronize", lambda: torch.accelerator.synchronize()),
]
FREE = [
    lambda: set_masked(0.0),
    lambda: set_first(True),
    lambda: X[IDS],
    lambda: X[torch.arange(2, device=DEVICE)],
    lambda: torch.where(MASK, 1, 2) + X.where(MASK, 0),
    lambda: X.masked_fill(MASK, X[0]),
    lambda: torch.nonzero_static(MASK, size=2),
    lambda: X.repeat_interleave(IDS, output_size=2),
    lambda: X.sort().values.cumsum(dim=0).argmax(keepdim=True),
    lambda: X.topk(2).indices,
    lambda: torch.zeros_like(X).scatter_(0, IDS, X).index_add_(0, IDS, X),
    lambda: torch.nn.utils.clip_grad_norm_([X.clone().requires_grad_()], 1.0),
    lambda: X.to(DEVICE, non_blocking=True),
    lambda: (HOST.tolist(), float(HOST[0]), HOST.numpy(), HOST[HOST > 1], torch.tensor([1.0])),
    lambda: torch.empty((), dtype=torch.int64).random_().item(),
]


@pytest.mark.parametrize(("operation", "work"), WAITING)
def test_what_waits_is_counted_once_where_it_is(operation, work):
    with HostWaits([X, IDS, MASK]) as waits:
        work()
    (wait,) = waits.found
    file, line = work.__code__.co_filename, work.__code__.co_firstlineno
    assert file.endswith(wait.file)
    assert wait.operation == operation
    assert wait.line in (line, set_masked.__code__.co_firstlineno + 1)


@pytest.mark.parametrize("work", FREE)
def test_what_does_not_wait_is_not_counted(work):
    with HostWaits([X, IDS, MASK]) as waits:
        work()
    assert waits.found == []


def test_what_is_computed_or_written_from_the_device_is_on_it():
    total, moments = torch.zeros(()), [torch.zeros(3)]
    with HostWaits([X]) as waits:
        total += (X * 2).sum()
        torch._foreach_add_(moments, [X])
        total.item()
        moments[0].tolist()
    assert [wait.operation for wait in waits.found] == ["_local_scalar_dense", "tolist"]


class Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * float(grad[0])


def test_a_backward_is_watched():
    model = torch.nn.Linear(3, 3)
    with HostWaits([model]) as waits:
        Reads.apply(model(torch.ones(3))).sum().backward()
    (wait,) = waits.found
    assert wait.function == "Reads.backward"
    assert wait.place == f"{wait.file} Reads.backward _local_scalar_dense"
    assert str(wait) == f"{wait.file}:{wait.line} Reads.backward _local_scalar_dense"


@pytest.mark.parametrize("fused", [False, True])
def test_adam_reads_no_count_of_steps_from_the_device(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([weight], fused=fused)
    with HostWaits([weight]) as waits:
        for _ in range(2):
            weight.square().sum().backward()
            adam.step()
    assert waits.found == []


def test_a_barrier_waits_and_a_reduction_does_not(processes):
    with HostWaits([X]) as waits:
        dist.all_reduce(X.clone(), group=processes.data_parallel)
        assert waits.found == []
        dist.barrier(group=processes.data_parallel)
    assert [wait.operation for wait in waits.found] == ["barrier"]


def test_afterwards_torch_is_as_it_was():
    before = torch.Tensor.tolist, torch.Tensor.to, torch.tensor
    with HostWaits([X]) as waits:
        assert torch.Tensor.tolist is not before[0]
    assert (torch.Tensor.tolist, torch.Tensor.to, torch.tensor) == before
    X.tolist()
    assert waits.found == []
