"""Other people's per-token linear cross-entropies, where this machine has them. They select like ours, outside."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from wmtp_core.losses.logits_chunk import rows_per_chunk

PerTokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states `[N, D]`, unembedding `[V, D]` and targets int64 `[N]` (-100: none) to losses `[N]`."""


class Unavailable(Exception):
    """A peer that cannot be compared here; the message says why."""


def _torch_chunked(device: torch.device) -> PerTokenLoss:
    """Load `torch.nn.functional.linear_cross_entropy` in chunks as large as ours.

    Its own choice is rows · D / V, which is a few rows where V is large and the batch of a benchmark small.
    """
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy; torch 2.13 does")

    def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows_per_chunk(weight))
        return torch.nn.functional.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)

    return losses


def _liger(device: torch.device) -> PerTokenLoss:
    """Load Liger-Kernel (Hsu et al., arXiv 2410.10989)."""
    _require("liger_kernel", "liger-kernel", device)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def _cut_cross_entropy(device: torch.device) -> PerTokenLoss:
    """Cut cross-entropy (Wijmans et al., arXiv 2411.09009), without its filter of small gradients: it is not exact."""
    _require("cut_cross_entropy", "cut-cross-entropy", device)
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return lambda hidden, weight, targets: linear_cross_entropy(
        hidden, weight, targets, reduction="none", impl="cce_exact"
    )


def _require(module: str, package: str, device: torch.device) -> None:
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{package} is not installed")
    if device.type != "cuda":
        raise Unavailable(f"{package} needs CUDA, and this run is on {device.type}")


PEERS: dict[str, Callable[[torch.device], PerTokenLoss]] = {
    "torch F.linear_cross_entropy": _torch_chunked,
    "Liger-Kernel": _liger,
    "cut-cross-entropy": _cut_cross_entropy,
}
"""What gives a peer's op for a device, or raises Unavailable."""
