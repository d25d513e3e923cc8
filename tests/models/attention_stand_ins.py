"""What runs on an accelerator alone, in plain torch: FlashAttention over documents end to end, and flex_attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex
from transformers.integrations import flex_attention as transformers_flex
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLASH = "flash_attention_2"


def varlen_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each stretch of `cu_seq_lens_q`, one after the other: what flash_attn_varlen_func computes."""
    assert (attention_mask, len(query), dropout) == (None, 1, 0)
    assert cu_seq_lens_q.dtype == torch.int32
    assert torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    ends = cu_seq_lens_q.tolist()
    assert (ends[0], ends[-1]) == (0, query.shape[2])
    assert max_length_q == max_length_k == max(end - start for start, end in pairwise(ends))
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for start, end in pairwise(ends):
        q, k, v = (x[0, :, start:end] for x in (query, key, value))  # [heads, n, width]
        scores = q @ k.repeat_interleave(groups, dim=0).mT * scaling
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (behind < 0) | (behind >= (sliding_window or end))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        outputs.append(weights @ v.repeat_interleave(groups, dim=0))
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


@contextmanager
def stand_ins() -> Iterator[None]:
    """Put `varlen_attention` in FlashAttention's place, and let flex_attention differentiate, uncompiled."""

    def eager(*args: Any, training: bool, **kwargs: Any) -> Any:
        return torch_flex.flex_attention(*args, **kwargs)

    with (
        patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {FLASH: varlen_attention}),
        patch.object(torch_flex, "_validate_device", lambda *_: None),
        patch.object(transformers_flex, "compile_friendly_flex_attention", eager),
    ):
        yield
