"""What later heads learn from head 0: its own distribution, of which a chunk at a time is formed beside theirs.

Head h at position t learns what head 0 says at t+h, where it predicts the same token having read the h tokens between.
Head 0's logits of a run of positions serve all heads there, so that a chunk costs little more than a cross-entropy's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wmtp_core.errors import UserError
from wmtp_core.losses.divergences import Divergence, check_divergence, divergence, divergence_gradient
from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.logits_chunk import ChunkedLogits, LogitsChunk, SoftmaxInPlace, has_triton, on_accelerator

RUN = 32
"""Positions that stand together in a chunk: its teacher's rows are these and the H−1 after them."""
_BLOCK = 2**18  # probabilities that are compared at a time, so that what that takes stays in a cache


@dataclass(frozen=True)
class Distillation:
    """A teacher, and how far from it a prediction is.

    The loss of a prediction is (1 − c)·divergence + c·cross-entropy.

    Attributes:
        teacher: `[P, D]`, the normed hidden states of head 0 at every position; no gradient goes there.
        divergence: `forward-kl`, `reverse-kl` or `total-variation`.
        cross_entropy: c, in [0, 1).
    """

    teacher: Tensor
    divergence: Divergence = "forward-kl"
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        check_divergence(self.divergence)
        if not 0 <= self.cross_entropy < 1:
            raise UserError(
                f"cross_entropy is {self.cross_entropy}; give its share of the loss, at least 0 and below 1"
            )

    def teacher_rows(self, rows: Tensor, heads: int, run: int | None) -> tuple[Tensor, Tensor]:
        """Return the teacher's rows that some rows learn from, int64 `[m]`, and which of these each one does, `[r]`.

        Args:
            rows: int64 `[r]`, `position · heads + (head − 1)`.
            heads: that learn at each position.
            run: see `ChunkedLogits.form_rows`; without it every row is given a teacher's row of its own where nobody
                waits for an accelerator to say which are the same.
        """
        last = len(self.teacher) - 1  # what lies beyond has no target
        positions, head = rows.div(heads, rounding_mode="floor"), rows % heads
        if not on_accelerator(rows):
            needed, index = (positions + head + 1).clamp(max=last).unique(return_inverse=True)
            return needed, index
        if run is None:
            return (positions + head + 1).clamp(max=last), torch.arange(len(rows), device=rows.device)
        starts, span = positions[:: run * heads], run + heads - 1
        needed = (starts[:, None] + 1 + torch.arange(span, device=rows.device)).flatten().clamp(max=last)
        place = torch.arange(len(rows), device=rows.device).div(heads, rounding_mode="floor")
        return needed, place.div(run, rounding_mode="floor") * span + place % run + head


class DistilledLogits(ChunkedLogits):
    """Forms chunks whose losses are those of a `Distillation`, beside their cross-entropies.

    Args:
        weight: `[V, D]`, the unembedding of teacher and student.
        rows: the most rows of a chunk.
        transform: from products to logits.
        how: the teacher and the divergence.
    """

    def __init__(self, weight: Tensor, rows: int, transform: LogitTransform, how: Distillation) -> None:
        super().__init__(weight, rows, transform)
        self.how = how

    def form_rows(self, rows: Tensor, hidden: Tensor, targets: Tensor, run: int | None = None) -> LogitsChunk:
        """Form the logits of some rows, and of the teacher's that they learn from."""
        needed, index = self.how.teacher_rows(rows, len(hidden) // len(self.how.teacher), run)
        return self.compare(hidden[rows], targets[rows], self.how.teacher[needed], index)

    def compare(self, hidden: Tensor, targets: Tensor, teacher: Tensor, index: Tensor) -> LogitsChunk:
        """Form a chunk.

        Args:
            hidden: `[r, D]`.
            targets: int64 `[r]`.
            teacher: `[m, D]`.
            index: int64 `[r]`, which row of the teacher each row learns from.
        """
        said = self.transform.apply_(self.product(teacher, "teacher"))
        return DistilledChunk(self, self.product(hidden, "logits"), targets, said, index)


class DistilledChunk(SoftmaxInPlace):
    """The losses of one chunk, from log-probabilities in float32.

    Attributes:
        ce: float32 `[r]`, cross-entropies.
        losses: float32 `[r]`.
    """

    def __init__(
        self, buffers: DistilledLogits, logits: Tensor, targets: Tensor, teacher: Tensor, index: Tensor
    ) -> None:
        super().__init__(buffers, buffers.transform.apply_(logits), targets)
        self._how, self._index = buffers.how, index
        self._teacher = torch.log_softmax(teacher, dim=-1, out=teacher)
        self._block = block = max(1, _BLOCK // logits.shape[1])  # of rows
        for rows in self._teacher.split(block):
            _normalize(rows)
        blocks = zip(self._log_probabilities.split(block), index.split(block), strict=True)
        apart = torch.cat(
            [divergence(self._how.divergence, self._teacher[of], _normalize(rows.clone())) for rows, of in blocks]
        )
        self.losses = (1 - self._how.cross_entropy) * apart + self._how.cross_entropy * self.ce

    def _to_gradients(self, log_probabilities: Tensor, targets: Tensor, grads: Tensor, kept: Tensor | None) -> None:
        how, share = self._how, self._how.cross_entropy
        index = self._index if kept is None else self._index[kept]
        blocks = (tensor.split(self._block) for tensor in (log_probabilities, index, targets, grads))
        for rows, of, target, grad in zip(*blocks, strict=True):
            _normalize(rows)
            gradient = divergence_gradient(how.divergence, self._teacher[of], rows).mul_(1 - share)
            if share:
                gradient.add_(rows.exp(), alpha=share)
                gradient[torch.arange(len(target), device=target.device), target] -= share
            rows.copy_(gradient.mul_(grad[:, None]).masked_fill_(grad[:, None] == 0, 0))


def _normalize(log_probabilities: Tensor) -> Tensor:
    """Correct rows `[n, V]` in place: torch's softmax on a CPU is off by 3e-5 where V is large."""
    return log_probabilities.sub_(log_probabilities.exp().sum(dim=-1, keepdim=True).log())


def distilled_logits(weight: Tensor, rows: int, transform: LogitTransform, how: Distillation) -> DistilledLogits:
    """Return what forms chunks of at most `rows` rows on the weight's device."""
    if not has_triton(weight):
        return DistilledLogits(weight, rows, transform, how)
    from wmtp_core.losses.triton_distillation import TritonDistilledLogits

    return TritonDistilledLogits(weight, rows, transform, how)
