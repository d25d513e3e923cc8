"""What reaches a family's attention function: told from a copy without weights, in one forward without numbers."""

import copy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wmtp_models.trunk.packed_masks import known_packing

_RECORDER = "wmtp_recorder"


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of transformers' attention interface.

    Attributes:
        width: of queries and keys, for each head.
        masked_to: tokens of the sliding window or chunk that its mask has; None: it has none.
        own_mask: it was handed a mask of the family's own making.
        given: the keyword arguments.
    """

    width: int
    masked_to: int | None
    own_mask: bool
    given: dict[str, Any]


def set_attention(model: nn.Module, implementation: str) -> None:
    """Set transformers' attention implementation of every module in a model: of a trunk, and of heads beside it.

    transformers' own `set_attn_implementation` leaves out layers that carry copies of a configuration, and refuses
    what the device has that the model is still to be moved to.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            config._attn_implementation = implementation


def record_attention_calls(causal_lm: PreTrainedModel) -> list[AttentionCall]:
    """Return the calls of one training forward over packed rows, handed what FlashAttention is handed.

    Raises:
        Exception: whatever a family raises that cannot run on the meta device.
    """
    calls: list[AttentionCall] = []

    def mask(batch_size: int, q_length: int, kv_length: int, local_size: int | None = None, **_: Any) -> Tensor:
        made = torch.empty(batch_size, 1, q_length, kv_length, dtype=torch.bool, device="meta")
        made.wmtp_local_size = local_size  # type: ignore[attr-defined]  # a mark of ours on the mask
        return made

    def attend(
        _module: nn.Module, query: Tensor, _key: Tensor, value: Tensor, attention_mask: Any, *_: Any, **given: Any
    ) -> tuple[Tensor, None]:
        own = not hasattr(attention_mask, "wmtp_local_size")
        calls.append(AttentionCall(query.shape[-1], None if own else attention_mask.wmtp_local_size, own, given))
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    config = copy.deepcopy(causal_lm.config)
    with torch.device("meta"):
        twin = type(causal_lm)(config).train().to(torch.bfloat16)  # which grouped products of experts ask for
    set_attention(twin, _RECORDER)
    tokens = torch.empty(1, 8, dtype=torch.long, device="meta")
    bounds = {f"cu_seq_lens_{side}": torch.empty(3, dtype=torch.int32, device="meta") for side in "qk"}
    with (
        torch.no_grad(),
        known_packing(True),
        patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {_RECORDER: attend}),
        patch.dict(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, {_RECORDER: mask}),
    ):
        lengths = {f"max_length_{side}": 4 for side in "qk"}
        twin.base_model(input_ids=tokens, position_ids=tokens, use_cache=False, **bounds, **lengths)
    return calls
