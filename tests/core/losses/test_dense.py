"""cross_entropy.py: the dense oracle is −log softmax at the target, in float32, and 0 where nothing is asked."""

import pytest
import torch

from wmtp_core import dense_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_minus_log_softmax(dtype):
    logits = (torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    targets = torch.randint(9, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    targets[0, 1, 2] = -100
    ce = dense_cross_entropy(logits, targets)
    assert (ce.dtype, ce.shape) == (torch.float32, (2, 3, 4))
    exact = logits.double().exp() / logits.double().exp().sum(dim=-1, keepdim=True)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        b, t, h = place
        expected = 0.0 if place == [0, 1, 2] else -exact[b, t, h, targets[b, t, h]].log().item()
        assert ce[b, t, h].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_another_index_can_be_ignored():
    assert dense_cross_entropy(torch.randn(2, 5), torch.tensor([7, 1]), ignore_index=7)[0] == 0
