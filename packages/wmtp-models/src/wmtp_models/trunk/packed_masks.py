"""What transformers is told about packed rows, so that it need not look at them.

Its masks are made in the forward of each family, from position ids. For that it looks whether these restart anywhere
(`masking_utils.find_packed_sequence_indices`), and waits for an accelerator's answer. The host packed them and knows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import masking_utils

from wmtp_models.trunk.block_mask import causal_block_mask

FLEX = "flex_attention"


def find_stretches(position_ids: Tensor) -> Tensor:
    """Return the number of each token's document in its row, int64 `[B, S]`, by where position ids restart."""
    steps = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1)
    return (steps != 1).cumsum(dim=-1)


@contextmanager
def known_packing(packed: bool) -> Iterator[None]:
    """Make every trunk that runs in here take its rows for packed or not, and build flex_attention's masks by blocks.

    Args:
        packed: whether any row may hold several documents; where False, all are taken to be one document each.
    """
    rows: list[Tensor] = []

    def find(position_ids: Tensor) -> Tensor | None:
        rows[:] = [find_stretches(position_ids)]
        return rows[0] if packed else None

    def flex_mask(mask_function: Callable[..., Tensor], local_size: int | None = None, **how: Any) -> BlockMask:
        batch = how["batch_size"]
        stretches = rows[0] if packed else torch.zeros_like(rows[0])
        return causal_block_mask(
            stretches.expand(batch, -1), mask_function, local_size, local_size is None and not how["use_vmap"]
        )

    masks = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    with (
        patch.object(masking_utils, "find_packed_sequence_indices", find),
        patch.dict(masks._local_mapping, {FLEX: flex_mask}),
    ):
        yield
