"""Controls for honest experiments: rules against which selection by excess loss has to prove itself."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.losses.hints import PointwiseHint
from wmtp_core.selection import excess_loss
from wmtp_core.targets import shift_to_heads
from wmtp_core.weighting.critic import softmax_over_heads
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, WeightPlan
from wmtp_core.weighting.top_k import Score, TopKWeighting
from wmtp_core.weighting.uniform import StaticPlan


@dataclass(frozen=True)
class RandomScore:
    """A hash of (seed, step, row, position, head), drawn anew each step: the same for every split into ranks."""

    seed: int = 0

    def __call__(self, inputs: WeightingInputs) -> Tensor:
        """Return 24 random bits for each prediction, exact in float32."""
        _, length, horizon = inputs.valid.shape
        device = inputs.valid.device
        seed = torch.full((), self.seed, dtype=torch.int64, device=device)
        key = _mix(inputs.row_ids + _mix(_mix(seed) + inputs.step))  # [B]
        cell = torch.arange(length * horizon, device=device).view(1, length, horizon)
        return (_mix(key.view(-1, 1, 1) + cell) & 0xFFFFFF).float()  # [B, S, H]


@dataclass(frozen=True)
class RandomWeighting(TopKWeighting):
    """Control: later heads keep a random k_percent; see `TopKWeighting` for the arguments."""

    score: Score = field(init=False, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "score", RandomScore(self.seed))


@dataclass(frozen=True)
class SoftmaxExcessWeighting(HeadWeighting):
    """Control: n·softmax of |excess| / temperature over the n valid heads, the older rule that rho1 replaces."""

    temperature: float = 0.7

    def plan(self, inputs: WeightingInputs) -> WeightPlan:
        """Plan weights that look at each position's losses."""
        return _SoftmaxExcessPlan(inputs, self.temperature)


class _SoftmaxExcessPlan(WeightPlan):
    def __init__(self, inputs: WeightingInputs, temperature: float) -> None:
        self.reference_ce = inputs.require_reference_ce("softmax-excess")
        self.valid, self.temperature = inputs.valid, temperature
        self.counts = inputs.targets_per_row().sum(dim=0)

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        """Return weights that sum to the number of valid heads at each position."""
        return softmax_over_heads(excess_loss(ce, self.reference_ce).abs(), self.valid, self.temperature)

    def hint(self, values: Tensor | None = None) -> PointwiseHint:
        """Return the rule itself: of a chunk the weights are what they will be of the whole."""
        by_target = shift_to_heads(self.reference_ce, self.valid.shape[-1]).flatten(0, 1)  # [B·S, H]
        valid = self.valid.flatten(0, 1)

        def rule(positions: Tensor, ce: Tensor) -> Tensor:
            return softmax_over_heads((ce - by_target[positions]).abs(), valid[positions], self.temperature)

        return PointwiseHint(rule)


@dataclass(frozen=True)
class LabelledWeighting(HeadWeighting):
    """Control: head 0 whole, later heads keep the targets that the corpus's own labels call clean.

    Args:
        group: over whose ranks a batch extends; None: this process alone.
    """

    group: dist.ProcessGroup | None = None

    def plan(self, inputs: WeightingInputs) -> StaticPlan:
        """Plan weight 1 on unlabeled targets."""
        clean = shift_to_heads(inputs.require_token_labels("labelled"), inputs.valid.shape[-1]) == 0
        clean[..., 0] = True
        kept = inputs.valid & clean
        counts = kept.sum(dim=(0, 1))
        if self.group is not None and inputs.valid_per_row is not None:
            dist.all_reduce(counts, group=self.group)
        return StaticPlan(kept.float(), counts)


def _mix(x: Tensor) -> Tensor:
    """Mix 64 bits as SplitMix does (Steele et al., 2014), in int64 arithmetic that wraps."""
    x = x * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
