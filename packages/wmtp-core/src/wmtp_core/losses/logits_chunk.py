"""One chunk of logits after the other, in buffers that are reused: its losses, and the gradients of its logits.

Memory that is freed and taken again is slow on a CPU, and results kept between large temporaries pin the heap.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class LogitsChunk(Protocol):
    """The logits of some rows. It lives in its `ChunkedLogits`' buffers until that forms the next one."""

    losses: Tensor
    """float32 `[r]`, the cross-entropy of each row."""

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        """Return the gradients of the logits: grad_loss · (softmax − 1 at the target). It may be asked for once.

        Args:
            kept: int64 `[k]`, which rows, ascending; None: all of them.
            grad_losses: float32 `[k]`, the gradients of the kept rows' losses.

        Returns:
            `[k, V]` of the weight's dtype, in the chunk's place.
        """
        ...


class ChunkedLogits:
    """Forms chunks of `hidden @ weight.T`, one after the other, in float32.

    Losses are those of `torch.nn.functional.cross_entropy` to the bit.

    Args:
        weight: `[V, D]`, the unembedding.
        rows: the most rows of a chunk.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight, self.rows = weight, rows
        self._buffers: dict[str, Tensor] = {}

    def form(self, hidden: Tensor, targets: Tensor) -> LogitsChunk:
        """Form the logits of hidden `[r, D]` and their losses against targets int64 `[r]` in 0 … V−1."""
        logits = self.buffer("logits", len(hidden), torch.float32)
        if hidden.dtype == torch.float32:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            logits.copy_(torch.mm(hidden, self.weight.T, out=self.buffer("product", len(hidden), hidden.dtype)))
        log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)  # [r, V], as F.cross_entropy does it
        return _SoftmaxInPlace(self, log_probabilities, targets)

    def buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Return `[rows, V]` of memory that the next caller of this name gets again."""
        if name not in self._buffers or len(self._buffers[name]) < rows:
            # The kept rows of a chunk are about as many in all of them: not worth a whole chunk's memory.
            most = min(self.rows, rows + rows // 16) if name == "kept" else self.rows
            self._buffers[name] = torch.empty(most, len(self.weight), dtype=dtype, device=self.weight.device)
        return self._buffers[name][:rows]


class _SoftmaxInPlace:
    def __init__(self, logits: ChunkedLogits, log_probabilities: Tensor, targets: Tensor) -> None:
        self._logits, self._log_probabilities, self._targets = logits, log_probabilities, targets
        self.losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        gradients, targets = self._log_probabilities, self._targets
        if kept is not None:
            out = self._logits.buffer("kept", len(kept), torch.float32)
            gradients, targets = torch.index_select(gradients, 0, kept, out=out), targets[kept]
        # On a CPU torch's softmax adds its terms one after the other, and is off by 3e-5 for 128k of them. The sum of
        # what it gave is added up in pairs, and corrects that.
        gradients.exp_()
        gradients.mul_((grad_losses / gradients.sum(dim=-1))[:, None])
        gradients[torch.arange(len(targets)), targets] -= grad_losses
        weight = self._logits.weight
        if weight.dtype == torch.float32:
            return gradients
        return self._logits.buffer("product", len(gradients), weight.dtype).copy_(gradients)


class CompiledChunkedLogits(ChunkedLogits):
    """The same for an accelerator: two fused kernels, one read of the logits each, in the weight's own dtype.

    `TORCHDYNAMO_DISABLE=1` in the environment runs them operation by operation, where no compiler is installed.
    """

    def form(self, hidden: Tensor, targets: Tensor) -> LogitsChunk:
        """Form a chunk as the base class does; rows of gradient 0 give 0, whatever their logits."""
        logits = torch.mm(hidden, self.weight.T, out=self.buffer("logits", len(hidden), self.weight.dtype))
        return _CompiledChunk(self, logits, targets)


class _CompiledChunk:
    def __init__(self, buffers: ChunkedLogits, logits: Tensor, targets: Tensor) -> None:
        self._buffers, self._logits, self._targets = buffers, logits, targets
        self.losses, self._peaks, self._sums = _compiled(_losses)(logits, targets)

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        if kept is None:
            write, scales = _compiled(_write_gradients), grad_losses / self._sums
            return write(self._logits, self._logits, self._peaks, scales, self._targets, grad_losses)
        write, scales = _compiled(_write_kept_gradients), grad_losses / self._sums[kept]
        out = self._buffers.buffer("kept", len(kept), self._logits.dtype)
        return write(out, self._logits, kept, self._peaks[kept], scales, self._targets[kept], grad_losses)


def chunked_logits(weight: Tensor, rows: int) -> ChunkedLogits:
    """Return what forms chunks of at most `rows` rows on the weight's device."""
    return (CompiledChunkedLogits if on_accelerator(weight) else ChunkedLogits)(weight, rows)


def on_accelerator(tensor: Tensor) -> bool:
    """Return whether the tensor is on an accelerator, where the host waits to learn how many rows there are."""
    return tensor.device.type != "cpu"


def rows_per_chunk(weight: Tensor) -> int:
    """Return how many rows of logits are formed at once for an unembedding `[V, D]`.

    The weight's gradient is read and written once a chunk, so a chunk of few rows is slow however small its memory.
    """
    if weight.device.type == "cpu":
        return max(384, 3 * 2**22 // len(weight))
    return max(1024, 2**27 // len(weight))


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, only once it is called: the compiler takes seconds to import."""
    return torch.compile(function, dynamic=True)


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, and of each row the largest logit and the sum of exp(logit − largest).

    As one number they would round.
    """
    peaks = logits.amax(dim=-1).float()
    shifted = logits.float() - peaks[:, None]
    sums = shifted.exp().sum(dim=-1)
    return (sums.log() - shifted.gather(1, targets[:, None]).squeeze(1)).clamp(min=0), peaks, sums


def _write_gradients(
    out: Tensor, logits: Tensor, peaks: Tensor, scales: Tensor, targets: Tensor, grad_losses: Tensor
) -> Tensor:
    at_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]  # [k, V]
    scaled = (logits.float() - peaks[:, None]).exp() * scales[:, None]
    return out.copy_((scaled - at_target * grad_losses[:, None]).where(grad_losses[:, None] != 0, 0))


def _write_kept_gradients(
    out: Tensor, logits: Tensor, kept: Tensor, peaks: Tensor, scales: Tensor, targets: Tensor, grad_losses: Tensor
) -> Tensor:
    return _write_gradients(out, logits[kept], peaks, scales, targets, grad_losses)
