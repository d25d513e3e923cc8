"""Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from wmtp_core import UserError
from wmtp_models.generation.rows import GeneratedSequence


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The filters are those of transformers' `generate`, in its order.

    Args:
        temperature: the logits' divisor, above 0.
        top_k: draw from the k most probable tokens; None for all.
        top_p: draw from the fewest tokens that hold this much probability, in (0, 1].
        seed: of all draws of one `generate`.

    Raises:
        UserError: a value out of its bounds.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    _filters: LogitsProcessorList = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}: it must be above 0 (without sampling, text is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: it must be at least 1, or left out for all tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: it must lie in (0, 1], 1 for all tokens")
        filters = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            filters.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            filters.append(TopPLogitsWarper(self.top_p))
        object.__setattr__(self, "_filters", filters)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution that is drawn from, float32 `[..., V]` like the logits."""
        flat = logits.flatten(0, -2)
        filtered: Tensor = self._filters(None, flat)
        return filtered.softmax(dim=-1).view_as(logits)


class SpeculativeSampler:
    """Draws drafts from the later heads' distributions, and accepts them such that head 0's is what comes out."""

    tie_forwards = 0  # a sample has no tie to settle

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.drafts = torch.empty(0, 0, dtype=torch.long, device=device)
        self._proposals: list[Tensor] = []
        self._sampling = sampling
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def start(self, rows: int) -> None:
        """Begin a round of so many rows without any draft."""
        self.drafts, self._proposals = self.drafts.new_empty(rows, 0), []

    def propose(self, logits: Tensor) -> Tensor:
        """Draw tokens by logits `[B, n, V]` of the next n heads, int64 `[B, n]`."""
        proposal = self._sampling.probabilities(logits)
        tokens = draw(proposal, self._generator)
        self.drafts = torch.cat([self.drafts, tokens], dim=1)
        self._proposals.append(proposal)
        return tokens

    def verify(self, logits: Tensor, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
        """Accept drafts by head 0's logits, float32 `[B, d + 1, V]`; see `verify_drafts`."""
        target = self._sampling.probabilities(logits)
        proposal = torch.cat(self._proposals, dim=1) if self._proposals else target[:, :0]  # [B, d, V]
        return verify_drafts(target, proposal, self.drafts, self._generator)


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one token, int64 `[...]`, from each distribution of `[..., V]`."""
    flat = probabilities.flatten(0, -2)
    return torch.multinomial(flat, 1, generator=generator).view(probabilities.shape[:-1])


def verify_drafts(
    target: Tensor, proposal: Tensor, drafts: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Accept drafts such that what comes out is distributed as the target, whatever the proposal.

    Draft x_i ~ q_i is accepted with probability min(1, p_i(x_i) / q_i(x_i)), as long as all before it were. In place of
    the first that is not accepted comes a draw from max(0, p_i − q_i), normalised; after the last one, a draw from p
    (arXiv 2211.17192, algorithm 1).

    Args:
        target: p, float32 `[B, d + 1, V]`.
        proposal: q, float32 `[B, d, V]`.
        drafts: x, int64 `[B, d]`.
        generator: of the draws.

    Returns:
        How many drafts each row accepts, int64 `[B]`, and the token after them, int64 `[B]`.
    """
    at_drafts = drafts.unsqueeze(-1)
    p, q = target[:, :-1].gather(-1, at_drafts).squeeze(-1), proposal.gather(-1, at_drafts).squeeze(-1)  # [B, d]
    uniform = torch.rand(drafts.shape, generator=generator, device=drafts.device)
    accepted = (uniform * q < p).long().cumprod(dim=-1).sum(dim=-1)  # [B]
    rows = torch.arange(len(accepted), device=accepted.device)
    p = target[rows, accepted]  # [B, V]
    residual = (p - torch.nn.functional.pad(proposal, (0, 0, 0, 1))[rows, accepted]).clamp(min=0)
    # p = q up to rounding may leave nothing, and then p itself is what the residual stands for.
    return accepted, draw(torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, p), generator)
