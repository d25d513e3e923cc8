"""Row-sparse layers give what dense ones give, and multiply only the rows that receive a gradient."""

import copy

import pytest
import torch
from torch import library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from wmtp_core import GradientPlan
from wmtp_core.weighting.uniform import StaticPlan
from wmtp_lab.measure.host_waits import HostWaits
from wmtp_models.heads import sparse_grad_linear
from wmtp_models.heads.sparse_grad_linear import (
    RowSparseConv1D,
    RowSparseLinear,
    _compiled_gradients,
    expect_rows,
    make_row_sparse,
)
from wmtp_models.policy import MtpForCausalLM


class RowsMultiplied(TorchDispatchMode):
    """Counts the rows of the first factor of every matrix product."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm"):
            self.rows.append(args[-2].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch):
    """The form for a GPU, its kernels interpreted."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    for name in ("on_accelerator", "has_triton"):
        monkeypatch.setattr(sparse_grad_linear, name, lambda tensor: True)


def twins(kind, bias=True):
    torch.manual_seed(0)
    dense = nn.Linear(6, 10, bias=bias) if kind == "linear" else Conv1D(10, 6)
    sparse = copy.deepcopy(dense)
    make_row_sparse(sparse)
    return dense, sparse


def gradients(layer, x, grad):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    output.backward(grad)
    return [output, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("kept", [0, 1, 7, 20, 24])
@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_gradients_are_the_dense_ones(kind, bias, kept):
    dense, sparse = twins(kind, bias)
    assert type(sparse) is (RowSparseLinear if kind == "linear" else RowSparseConv1D)
    assert sparse.state_dict().keys() == dense.state_dict().keys()
    x, grad = torch.randn(4, 6, 6), torch.randn(4, 6, 10)
    grad.view(24, 10)[torch.randperm(24)[kept:]] = 0
    expected, actual = gradients(dense, x, grad), gradients(sparse, x, grad)
    assert torch.equal(expected[0], actual[0])
    for e, a in zip(expected[1:], actual[1:], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6)


def test_only_rows_with_a_gradient_are_multiplied():
    _, sparse = twins("linear")
    grad = torch.zeros(24, 10)
    grad[[2, 3, 11]] = 1.0
    output = sparse(torch.randn(24, 6, requires_grad=True))
    with RowsMultiplied() as seen:
        output.backward(grad)
    assert sorted(seen.rows) == [3, 10]  # 3 rows to the input's gradient, [out, 3] @ [3, in] to the weight's


def test_a_gradient_that_is_not_finite_is_not_skipped():
    _, sparse = twins("linear")
    grad = torch.zeros(24, 10)
    grad[5, 0] = torch.nan
    _, x_grad, weight_grad, _ = gradients(sparse, torch.randn(24, 6), grad)
    assert x_grad[5].isnan().all()
    assert weight_grad.isnan().any()


def test_later_heads_skip_what_they_were_not_selected_to_learn(family, make_causal_lm, input_ids):
    """The whole model's gradients are those of dense heads, and head 0 stays a plain layer."""
    policy = MtpForCausalLM.wrap(make_causal_lm(family), horizon=3)
    assert not any(isinstance(m, RowSparseLinear | RowSparseConv1D) for m in policy.causal_lm.modules())
    assert any(isinstance(m, RowSparseLinear | RowSparseConv1D) for m in policy.heads.modules())
    dense = copy.deepcopy(policy)
    for module in dense.modules():
        if isinstance(module, RowSparseLinear):
            module.__class__ = nn.Linear
        elif isinstance(module, RowSparseConv1D):
            module.__class__ = Conv1D
    weights = (torch.rand(*input_ids.shape, 3, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    weights[..., 0] = 1
    for model in (policy, dense):
        (model(input_ids).ce * weights).sum().backward()
    expected = dict(dense.named_parameters())
    for name, parameter in policy.named_parameters():
        if parameter.grad is None:
            assert expected[name].grad is None
        else:
            difference = (parameter.grad - expected[name].grad).norm()
            assert difference <= 1e-6 * expected[name].grad.norm(), name


@pytest.mark.parametrize("asked", [(True, True, True), (False, True, False), (True, False, True)])
@pytest.mark.parametrize("out_first", [True, False])
def test_the_compiler_is_told_the_shapes_of_what_it_does_not_look_into(out_first, asked):
    x, grad = torch.randn(2, 3, 6), torch.randn(2, 3, 10)
    grad[0, 1:] = 0
    weight = torch.randn(10, 6) if out_first else torch.randn(6, 10)
    library.opcheck(_compiled_gradients, (grad, x, weight, out_first, 0.5, *asked))


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_compiled_gradients_are_the_dense_ones(kind, bias):
    dense, sparse = twins(kind, bias)
    x, grad = torch.randn(4, 6, 6), torch.randn(4, 6, 10)
    grad[:, 1:] = 0
    expected = gradients(dense, x, grad)
    sparse.forward = torch.compile(sparse.forward, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(sparse, x, grad), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kept", [0, 1, 40, 44, 90, 150])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_on_a_gpu_any_number_of_rows_gives_the_gradients_of_float64(kind, dtype, precision, kept):
    """45 of 150 rows are multiplied in any case; more than a tile of 64 lies beyond."""
    draw = torch.Generator().manual_seed(kept)
    dense = nn.Linear(70, 130) if kind == "linear" else Conv1D(130, 70)
    sparse = copy.deepcopy(dense).to(dtype)
    make_row_sparse(sparse)
    expect_rows(sparse, 0.265)
    x, grad = torch.randn(3, 50, 70, generator=draw).to(dtype), torch.randn(3, 50, 130, generator=draw).to(dtype)
    grad.view(150, 130)[torch.randperm(150, generator=draw)[kept:]] = 0
    with RowsMultiplied() as seen:
        found = gradients(sparse, x, grad)[1:]
    assert seen.rows[1] == 45
    exact = dense.double()
    exact.load_state_dict({name: value.double() for name, value in sparse.state_dict().items()})
    for mine, expected in zip(found, gradients(exact, x.double(), grad.double())[1:], strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - expected).norm() <= precision * expected.norm()


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_rows_are_left_out_where_the_gradient_is_the_token_s_own(family, make_causal_lm, input_ids):
    policy = MtpForCausalLM.wrap(make_causal_lm(family), horizon=3)
    dense = copy.deepcopy(policy)
    plan = StaticPlan(torch.ones(*input_ids.shape, 3), torch.ones(3))
    weights = torch.zeros_like(plan.head_weights)
    weights[:, 1] = 1
    plan.share_of_later_heads = 0.2
    (policy(input_ids, plan=GradientPlan(plan, torch.ones(3))).ce * weights).sum().backward()
    (dense(input_ids).ce * weights).sum().backward()
    assert {part.share for part in policy.heads.modules() if hasattr(part, "share")} == {0.2, 1.0}
    for (name, mine), other in zip(policy.named_parameters(), dense.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_nobody_waits_for_the_number_of_rows():
    _, sparse = twins("linear")
    expect_rows(sparse, 0.5)
    x, grad = torch.randn(24, 6, requires_grad=True), torch.ones(24, 10)
    with HostWaits([sparse, x, grad]) as waits:
        sparse(x).backward(grad)
    assert waits.found == []
