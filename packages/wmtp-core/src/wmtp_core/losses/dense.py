"""Per-token cross-entropy of dense logits: the oracle that everything faster is held against."""

import torch
from torch import Tensor


def dense_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """−log softmax(logits)[target] in float32.

    Args:
        logits: float `[..., V]`.
        targets: int64 `[...]`.

    Returns:
        float32 `[...]`, 0 where the target is `ignore_index`.
    """
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(targets.shape)
