"""Row-sparse layers give what dense ones give, and multiply only the rows that receive a gradient."""

import copy

import pytest
import torch
from torch import library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from wmtp_models.heads.sparse_grad_linear import RowSparseConv1D, RowSparseLinear, _compiled_gradients, make_row_sparse
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
    library.opcheck(_compiled_gradients, (grad, x, weight, out_first, *asked))


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv1d", True)])
def test_compiled_gradients_are_the_dense_ones(kind, bias):
    dense, sparse = twins(kind, bias)
    x, grad = torch.randn(4, 6, 6), torch.randn(4, 6, 10)
    grad[:, 1:] = 0
    expected = gradients(dense, x, grad)
    sparse.forward = torch.compile(sparse.forward, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(sparse, x, grad), expected, strict=True):
        torch.testing.assert_close(one, other)
