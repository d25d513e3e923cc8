"""One chunk of logits after the other, in buffers that are reused: its losses, and the gradients of its logits.

Memory that is freed and taken again is slow on a CPU, and results kept between large temporaries pin the heap.
"""

import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform


class LogitsChunk(Protocol):
    """The logits of some rows. It lives in its `ChunkedLogits`' buffers until that forms the next one."""

    losses: Tensor
    """float32 `[r]`, the loss of each row."""
    ce: Tensor
    """float32 `[r]`, its cross-entropy, where that is not its loss."""

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        """Return the gradients of `hidden @ weight.T`. It may be asked for once.

        For cross-entropies that is grad_loss · (softmax − 1 at the target), times the derivative of the transform.

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
        return SoftmaxInPlace(self, self.transform.apply_(self.product(hidden, "logits")), targets)

    def form_rows(self, rows: Tensor, hidden: Tensor, targets: Tensor, run: int | None = None) -> LogitsChunk:
        """Form the logits of some rows.

        Args:
            rows: int64 `[r]`.
            hidden: `[N, D]`, of all rows.
            targets: int64 `[N]`, of all rows.
            run: all heads of so many positions stand side by side in `rows`, again and again; None: who knows.
        """
        return self.form(hidden[rows], targets[rows])

    def product(self, hidden: Tensor, name: str) -> Tensor:
        """Return `hidden @ weight.T` of hidden `[r, D]`, float32 `[r, V]`, in the buffer of that name."""
        out = self.buffer(name, len(hidden), torch.float32)
        if hidden.dtype == torch.float32:
            return torch.mm(hidden, self.weight.T, out=out)
        return out.copy_(torch.mm(hidden, self.weight.T, out=self.buffer("product", len(hidden), hidden.dtype)))

    def add_beyond(self, gradients: Any, missing: Tensor, targets: Tensor, order: Tensor, done: int) -> None:
        """Add what the rows `order[done:]` lack; the host waits for their number.

        Args:
            gradients: a `Gradients`.
            missing: float32 `[N]`, gradients of losses that have not been added.
            targets: int64 `[N]`.
            order: int64 `[N]`, rows, those that lack something first.
            done: how many of them lack nothing any more.
        """
        count = int((missing != 0).sum())
        for rows in order[done : max(done, count)].split(self.rows):
            if len(rows):
                chunk = self.form_rows(rows, gradients.inputs, targets)
                gradients.add(chunk, rows, None, missing, gradients.hinted[rows] == 0)

    def buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Return `[rows, V]` of memory that the next caller of this name gets again."""
        if name not in self._buffers or len(self._buffers[name]) < rows:
            # Kept rows, and a teacher's, are about as many in all chunks: not worth a whole chunk's memory.
            most = min(self.rows, rows + rows // 16) if name in ("kept", "teacher") else self.rows
            buffer = torch.empty(most, self._stride(), dtype=dtype, device=self.weight.device)
            buffer[:, len(self.weight) :] = 0  # products may read it, times 0
            self._buffers[name] = buffer
        return self._buffers[name][:rows, : len(self.weight)]

    def _stride(self) -> int:
        """Return the elements of a buffer's row: on an accelerator rows begin where 128 bytes do, for wide loads."""
        vocabulary = len(self.weight)
        return -(-vocabulary // 64) * 64 if on_accelerator(self.weight) else vocabulary


class SoftmaxInPlace:
    """A chunk of float32 logits that become log-probabilities, and these gradients, where they are."""

    def __init__(self, buffers: ChunkedLogits, logits: Tensor, targets: Tensor) -> None:
        self._logits, self._targets, self._transform = buffers, targets, buffers.transform
        at_target = logits.gather(1, targets[:, None]) if self._transform.softcap is not None else None
        self._log_probabilities = torch.log_softmax(logits, dim=-1, out=logits)  # [r, V], as F.cross_entropy does it
        self.ce = self.losses = -self._log_probabilities.gather(1, targets[:, None]).squeeze(1)
        # With these, a log-probability is again the logit that the derivative of the cap is of.
        self._normalizers = None if at_target is None else at_target.squeeze(1) + self.losses

    def gradients(self, kept: Tensor | None, grad_losses: Tensor) -> Tensor:
        """Return the gradients of the products, see `LogitsChunk`."""
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
        self._to_gradients(gradients, targets, grad_losses, kept)
        if derivative is not None:
            gradients.mul_(derivative)
        weight = self._logits.weight
        if weight.dtype == torch.float32:
            return gradients
        return self._logits.buffer("product", len(gradients), weight.dtype).copy_(gradients)

    def _to_gradients(self, log_probabilities: Tensor, targets: Tensor, grads: Tensor, kept: Tensor | None) -> None:
        """Turn the log-probabilities of the kept rows into gradients of the transformed logits, in place."""
        # On a CPU torch's softmax adds its terms one after the other, and is off by 3e-5 for 128k of them. The sum of
        # what it gave is added up in pairs, and corrects that.
        log_probabilities.exp_()
        log_probabilities.mul_((grads / log_probabilities.sum(dim=-1))[:, None])
        log_probabilities[torch.arange(len(targets)), targets] -= grads

    def _derivative_of_cap(self, log_probabilities: Tensor, normalizers: Tensor, softcap: float) -> Tensor:
        """Return 1 − (z / cap)² of the capped logits z, float32 `[k, V]`."""
        z = self._logits.buffer("derivative", len(log_probabilities), torch.float32).copy_(log_probabilities)
        z.add_(normalizers[:, None]).div_(softcap)
        return z.square_().neg_().add_(1)


def chunked_logits(weight: Tensor, rows: int, transform: LogitTransform = IDENTITY) -> ChunkedLogits:
    """Return what forms chunks of at most `rows` rows on the weight's device."""
    if not on_accelerator(weight):
        return ChunkedLogits(weight, rows, transform)
    if has_triton(weight):
        from wmtp_core.losses.triton_chunk import TritonChunkedLogits

        return TritonChunkedLogits(weight, rows, transform)
    from wmtp_core.losses.compiled_chunk import CompiledChunkedLogits

    return CompiledChunkedLogits(weight, rows, transform)


def has_triton(tensor: Tensor) -> bool:
    """Return whether Triton's kernels run where the tensor is."""
    return tensor.device.type == "cuda" and importlib.util.find_spec("triton") is not None


def on_accelerator(tensor: Tensor) -> bool:
    """Return whether the tensor is on an accelerator, where the host waits to learn how many rows there are."""
    return tensor.device.type != "cpu"


def rows_per_chunk(weight: Tensor) -> int:
    """Return how many rows of logits are formed at once for an unembedding `[V, D]`.

    The weight's gradient is read and written once a chunk, so a chunk of few rows is slow however small its memory. On
    an accelerator a chunk takes up to 1/64 of all memory that the device has: of all, and not of what is free, because
    other chunks add up to other roundings, and a run is to give the same whatever else lies there.
    """
    if weight.device.type == "cpu":
        return max(384, 3 * 2**22 // len(weight))
    row = len(weight) * weight.element_size()
    return min(max(1024, device_memory(weight.device) // 64 // row // 256 * 256), 2**14)


def device_memory(device: torch.device) -> int:
    """Return the bytes of memory that an accelerator has."""
    properties = getattr(torch, device.type).get_device_properties(device)
    return int(properties.total_memory)
