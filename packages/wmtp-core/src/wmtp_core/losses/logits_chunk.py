"""One chunk of logits after the other in buffers that are reused: losses out of them, and gradients into products.

Memory that is freed and taken again is slow on a CPU, and results kept between large temporaries pin the heap.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rows_per_chunk(weight: Tensor) -> int:
    """How many rows of logits are formed at once for an unembedding `[V, D]`.

    The weight's gradient is read and written once a chunk, so a chunk of few rows is slow however small its memory.
    """
    if weight.device.type == "cpu":
        return max(384, 3 * 2**22 // len(weight))
    return max(1024, 2**27 // len(weight))


class LogitsChunk:
    """Softmax in place, in float32; losses are those of `torch.nn.functional.cross_entropy` to the bit.

    Args:
        weight: `[V, D]`, the unembedding.
        rows: the most rows of a chunk.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight, self.rows = weight, rows
        self._buffers: dict[str, Tensor] = {}

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy float32 `[r]` of hidden `[r, D]` against targets int64 `[r]` in 0 … V−1."""
        logits = self._buffer("logits", len(hidden), torch.float32)
        if hidden.dtype == torch.float32:
            torch.mm(hidden, self.weight.T, out=logits)
        else:
            logits.copy_(torch.mm(hidden, self.weight.T, out=self._buffer("product", len(hidden), hidden.dtype)))
        self._log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)  # [r, V], as F.cross_entropy does it
        return -self._log_probabilities.gather(1, targets[:, None]).squeeze(1)

    def gradients(self, kept: Tensor | None, targets: Tensor, amounts: Tensor) -> Tensor:
        """What `amounts` arriving at the last losses give their logits: amount · (softmax − 1 at the target).

        Args:
            kept: int64 `[k]`, which rows of the last chunk, ascending; None: all of them.
            targets: int64 `[k]`, of the kept rows.
            amounts: float32 `[k]`, not 0.

        Returns:
            `[k, V]` of the weight's dtype. It takes the chunk's place: it can be asked for once.
        """
        gradients = self._log_probabilities
        if kept is not None:
            gradients = torch.index_select(gradients, 0, kept, out=self._buffer("kept", len(kept), torch.float32))
        # On a CPU torch's softmax adds its terms one after the other, and is off by 3e-5 for 128k of them. The sum of
        # what it gave is added up in pairs, and mends that.
        gradients.exp_()
        gradients.mul_((amounts / gradients.sum(dim=-1))[:, None])
        gradients[torch.arange(len(targets)), targets] -= amounts
        if self.weight.dtype == torch.float32:
            return gradients
        return self._buffer("product", len(gradients), self.weight.dtype).copy_(gradients)

    def _buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        if name not in self._buffers or len(self._buffers[name]) < rows:
            # The kept rows of a chunk are about as many in all of them: not worth a whole chunk's memory.
            most = min(self.rows, rows + rows // 16) if name == "kept" else self.rows
            self._buffers[name] = torch.empty(most, len(self.weight), dtype=dtype, device=self.weight.device)
        return self._buffers[name][:rows]


class CompiledLogitsChunk(LogitsChunk):
    """The same for an accelerator: two fused kernels, one read of the logits each, in the weight's own dtype.

    `TORCHDYNAMO_DISABLE=1` in the environment runs them operation by operation, where no compiler is installed.
    """

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        self._logits = torch.mm(hidden, self.weight.T, out=self._buffer("logits", len(hidden), self.weight.dtype))
        ce, self._peaks, self._sums = _compiled(_losses)(self._logits, targets)
        return ce

    def gradients(self, kept: Tensor | None, targets: Tensor, amounts: Tensor) -> Tensor:
        """As the base class; rows of amount 0 give 0, whatever their logits."""
        if kept is None:
            write, scales = _compiled(_write_gradients), amounts / self._sums
            return write(self._logits, self._logits, self._peaks, scales, targets, amounts)
        write, scales = _compiled(_write_kept_gradients), amounts / self._sums[kept]
        out = self._buffer("kept", len(kept), self.weight.dtype)
        return write(out, self._logits, kept, self._peaks[kept], scales, targets, amounts)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only once it is called: the compiler takes seconds to import."""
    return torch.compile(function, dynamic=True)


def _losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, and of each row the largest logit and the sum of exp(logit − largest): as one number they would round."""
    peaks = logits.amax(dim=-1).float()
    shifted = logits.float() - peaks[:, None]
    sums = shifted.exp().sum(dim=-1)
    return (sums.log() - shifted.gather(1, targets[:, None]).squeeze(1)).clamp(min=0), peaks, sums


def _write_gradients(
    out: Tensor, logits: Tensor, peaks: Tensor, scales: Tensor, targets: Tensor, amounts: Tensor
) -> Tensor:
    at_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]  # [k, V]
    scaled = (logits.float() - peaks[:, None]).exp() * scales[:, None]
    return out.copy_((scaled - at_target * amounts[:, None]).where(amounts[:, None] != 0, 0))


def _write_kept_gradients(
    out: Tensor, logits: Tensor, kept: Tensor, peaks: Tensor, scales: Tensor, targets: Tensor, amounts: Tensor
) -> Tensor:
    return _write_gradients(out, logits[kept], peaks, scales, targets, amounts)
