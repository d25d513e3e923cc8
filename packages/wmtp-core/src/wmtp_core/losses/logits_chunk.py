"""One chunk of logits after the other, in buffers that are reused: its losses, and the gradients of its logits.

Memory that is freed and taken again is slow on a CPU, and results kept between large temporaries pin the heap.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform


class LogitsChunk(Protocol):
    """The logits of some rows. It lives in its `ChunkedLogits`' buffers until that forms the next one."""

    losses: Tensor
    """float32 `[r]`, the cross-entropy of each row."""

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        """Return the gradients of `hidden @ weight.T`. It may be asked for once.

        That is grad_loss · (softmax − 1 at the target), times the derivative of the transform.

        Args:
            kept: int64 `[k]`, which rows, ascending; None: all of them.
            grad_losses: float32 `[k]`, the gradients of the kept rows' losses.

        Returns:
            `[k, V]` of the weight's dtype, in the chunk's place.
        """
        ...


class ChunkedLogits:
    """Forms chunks of transformed `hidden @ weight.T`, one after the other, in float32.

    Losses are those of `torch.nn.functional.cross_entropy` to the bit.

    Args:
        weight: `[V, D]`, the unembedding.
        rows: the most rows of a chunk.
        transform: from the product to the logits.
    """

    def __init__(self, weight: Tensor, rows: int, transform: LogitTransform = IDENTITY) -> None:
        self.weight, self.rows, self.transform = weight, rows, transform
        self._buffers: dict[str, Tensor] = {}

    def form(self, hidden: Tensor, targets: Tensor) -> LogitsChunk:
        """Form the logits of hidden `[r, D]` and their losses against targets int64 `[r]` in 0 … V−1."""
        logits = self.buffer("logits", len(hidden), torch.float32)
        if hidden.dtype == torch.float32:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            logits.copy_(torch.mm(hidden, self.weight.T, out=self.buffer("product", len(hidden), hidden.dtype)))
        return _SoftmaxInPlace(self, self.transform.apply_(logits), targets)

    def buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Return `[rows, V]` of memory that the next caller of this name gets again."""
        if name not in self._buffers or len(self._buffers[name]) < rows:
            # The kept rows of a chunk are about as many in all of them: not worth a whole chunk's memory.
            most = min(self.rows, rows + rows // 16) if name == "kept" else self.rows
            self._buffers[name] = torch.empty(most, len(self.weight), dtype=dtype, device=self.weight.device)
        return self._buffers[name][:rows]


class _SoftmaxInPlace:
    def __init__(self, buffers: ChunkedLogits, logits: Tensor, targets: Tensor) -> None:
        self._logits, self._targets, self._transform = buffers, targets, buffers.transform
        at_target = logits.gather(1, targets[:, None]) if self._transform.softcap is not None else None
        self._log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)  # [r, V], as F.cross_entropy does it
        self.losses = -self._log_probabilities.gather(1, targets[:, None]).squeeze(1)
        # With these, a log-probability is again the logit that the derivative of the cap is of.
        self._normalizers = None if at_target is None else at_target.squeeze(1) + self.losses

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        gradients, targets, normalizers = self._log_probabilities, self._targets, self._normalizers
        if kept is not None:
            out = self._logits.buffer("kept", len(kept), torch.float32)
            gradients, targets = torch.index_select(gradients, 0, kept, out=out), targets[kept]
            normalizers = None if normalizers is None else normalizers[kept]
        if self._transform.scale != 1:
            grad_losses = grad_losses * self._transform.scale
        softcap, derivative = self._transform.softcap, None
        if softcap is not None and normalizers is not None:
            derivative = self._derivative_of_cap(gradients, normalizers, softcap)
        # On a CPU torch's softmax adds its terms one after the other, and is off by 3e-5 for 128k of them. The sum of
        # what it gave is added up in pairs, and corrects that.
        gradients.exp_()
        gradients.mul_((grad_losses / gradients.sum(dim=-1))[:, None])
        gradients[torch.arange(len(targets)), targets] -= grad_losses
        if derivative is not None:
            gradients.mul_(derivative)
        weight = self._logits.weight
        if weight.dtype == torch.float32:
            return gradients
        return self._logits.buffer("product", len(gradients), weight.dtype).copy_(gradients)

    def _derivative_of_cap(self, log_probabilities: Tensor, normalizers: Tensor, softcap: float) -> Tensor:
        """Return 1 − (z / cap)² of the capped logits z, float32 `[k, V]`."""
        z = self._logits.buffer("derivative", len(log_probabilities), torch.float32).copy_(log_probabilities)
        z.add_(normalizers[:, None]).div_(softcap)
        return z.square_().neg_().add_(1)


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
        self._how = (buffers.transform.scale, buffers.transform.softcap)
        self.losses, self._peaks, self._sums = _compiled(_losses)(logits, targets, *self._how)

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        if kept is None:
            write, scales = _compiled(_write_gradients), grad_losses / self._sums
            return write(self._logits, self._logits, self._peaks, scales, self._targets, grad_losses, *self._how)
        write, scales = _compiled(_write_kept_gradients), grad_losses / self._sums[kept]
        out = self._buffers.buffer("kept", len(kept), self._logits.dtype)
        targets = self._targets[kept]
        return write(out, self._logits, kept, self._peaks[kept], scales, targets, grad_losses, *self._how)


def chunked_logits(weight: Tensor, rows: int, transform: LogitTransform = IDENTITY) -> ChunkedLogits:
    """Return what forms chunks of at most `rows` rows on the weight's device."""
    return (CompiledChunkedLogits if on_accelerator(weight) else ChunkedLogits)(weight, rows, transform)


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


def _losses(logits: Tensor, targets: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, and of each row the largest logit and the sum of exp(logit − largest).

    As one number they would round.
    """
    transformed = LogitTransform(scale, softcap)(logits.float())
    peaks = transformed.amax(dim=-1)
    shifted = transformed - peaks[:, None]
    sums = shifted.exp().sum(dim=-1)
    return (sums.log() - shifted.gather(1, targets[:, None]).squeeze(1)).clamp(min=0), peaks, sums


def _write_gradients(
    out: Tensor,
    logits: Tensor,
    peaks: Tensor,
    scales: Tensor,
    targets: Tensor,
    grad_losses: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    at_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]  # [k, V]
    transformed = LogitTransform(scale, softcap)(logits.float())
    gradients = (transformed - peaks[:, None]).exp() * scales[:, None] - at_target * grad_losses[:, None]
    if scale != 1:
        gradients = gradients * scale
    if softcap is not None:
        gradients = gradients * (1 - (transformed / softcap).square())
    return out.copy_(gradients.where(grad_losses[:, None] != 0, 0))


def _write_kept_gradients(out: Tensor, logits: Tensor, kept: Tensor, *others: Any) -> Tensor:
    return _write_gradients(out, logits[kept], *others)
