"""The block mask of flex_attention for packed documents, made from where they lie and without a dense mask.

torch's own `create_block_mask` asks its function about every pair of tokens: B·S² answers that are thrown away, or a
compilation for every shape. Documents lie one after the other, so the first and the last one in a block of tokens say
which blocks can meet at all. What meets is still decided by the mask function, pair by pair, in the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

BLOCK = 128
"""Tokens in a block, of flex_attention's kernels."""


def causal_block_mask(
    stretches: Tensor,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    only_causal: bool = False,
) -> BlockMask:
    """Build a block mask in which no block is kept that the mask function empties, as far as that is known.

    Args:
        stretches: int64 `[B, S]`, the number of each token's document, ascending in a row.
        mask_function: from batch, head, query and key index to whether they meet: at most what is causal, in one
            document, and fewer than `local_size` tokens apart.
        local_size: of a sliding window or chunk; None: there is none.
        only_causal: whether it keeps all that, so that whole blocks need not be asked.

    Returns:
        A mask of shape `[B, 1, S, S]`. Nothing is read from the device.
    """
    length = stretches.shape[1]
    count = -(-length // BLOCK)
    blocks = pad(stretches, (0, count * BLOCK - length), mode="replicate").unflatten(1, (count, BLOCK))
    first, last = blocks[..., 0], blocks[..., -1]  # [B, count], of each block
    index = torch.arange(count, device=stretches.device)
    behind = index[:, None] - index  # [count, count], blocks between the queries' and the keys'
    kept = (behind >= 0) & (last[:, None, :] >= first[:, :, None])  # [B, count, count]
    if local_size is not None:
        kept = kept & ((behind - 1) * BLOCK + 1 < local_size)
    whole = torch.zeros_like(kept)
    if only_causal:
        whole = (behind > 0) & (first[:, None, :] == last[:, :, None])
        whole = whole & ((index + 1) * BLOCK <= length)[:, None]  # the last block may reach beyond the row
    partly, wholly = _ordered(kept & ~whole), _ordered(whole)
    return BlockMask.from_kv_blocks(
        *partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=mask_function, seq_lengths=(length, length)
    )


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row of blocks keeps, int32 `[B, 1, count]`, and which, first of the rest."""
    dense = dense.unsqueeze(1).to(torch.int32)
    order: Any = dense.argsort(dim=-1, descending=True, stable=True)
    return dense.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
