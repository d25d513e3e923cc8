import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from wmtp_models.trunk.block_mask import BLOCK, causal_block_mask


def documents(length: int) -> Tensor:
    """Rows of one document, of many short ones, and of long ones whose ends are those of blocks or lie beside them."""
    index = torch.arange(length)
    ends = torch.tensor([1, 127, 128, 129, 256, 300])
    return torch.stack([torch.zeros_like(index), index // 7, torch.bucketize(index, ends, right=True)])


@pytest.mark.parametrize("length", [1, 24, 128, 129, 384, 500])
@pytest.mark.parametrize("window", [None, 1, 100, 129, 200])
def test_blocks_are_those_of_a_dense_mask(length: int, window: int | None) -> None:
    stretches = documents(length)

    def meets(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (q - k) < (window or length)
        return (q >= k) & near & (stretches[b, q] == stretches[b, k])

    mask = causal_block_mask(stretches, meets, window, only_causal=window is None)
    expected = create_block_mask(meets, 3, None, length, length, device="cpu")
    assert mask.shape == expected.shape
    assert torch.equal(mask.to_dense(), expected.to_dense()), "no block too many, none too few"
    if window is None:
        assert torch.equal(mask.full_kv_num_blocks, expected.full_kv_num_blocks)
        assert int(mask.full_kv_num_blocks.sum()) > 0 or length < 2 * BLOCK
    else:
        assert not mask.full_kv_num_blocks.any(), "what a window leaves is asked, pair by pair"
