"""Controls for honest experiments: rules against which selection by excess loss has to prove itself."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core.losses.fused import WeightHint
from wmtp_core.losses.hints import PointwiseHint, StaticHint
from wmtp_core.selection import Scope, check_k_percent, excess_loss, keep_ratio, select_by_score
from wmtp_core.targets import shift_to_heads
from wmtp_core.weighting.rule import HeadWeighting, WeightingInputs, num_selected_per_head, required, softmax_over_heads


@dataclass(frozen=True)
class RandomWeighting(HeadWeighting):
    """Control: head 0 whole (or not, see `Rho1Weighting`), later heads a random k_percent, drawn anew each step."""

    k_percent: float = 0.6
    scope: Scope = "batch"
    seed: int = 0
    group: dist.ProcessGroup | None = None
    from_head: int = 1

    def __post_init__(self) -> None:
        check_k_percent(self.k_percent)

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        # A hash of (seed, step, row, position, head) and no generator: the draw is the same for every split into ranks.
        _, length, horizon = signals.valid.shape
        device = signals.valid.device
        seed = torch.full((), self.seed, dtype=torch.int64, device=device)
        key = _mix(signals.row_ids + _mix(_mix(seed) + signals.step))  # [B]
        cell = torch.arange(length * horizon, device=device).view(1, length, horizon)
        scores = (_mix(key.view(-1, 1, 1) + cell) & 0xFFFFFF).float()  # [B, S, H], 24 bits: exact in float32
        return select_by_score(scores, signals.valid, self.k_percent, self.scope, self.group, self.from_head)

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return num_selected_per_head(valid_per_row, self.k_percent, self.scope, self.from_head)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        share = keep_ratio(self.k_percent, signals.valid.shape[-1], self.from_head)
        return StaticHint(self.compute_head_weights(signals), share)


@dataclass(frozen=True)
class SoftmaxExcessWeighting(HeadWeighting):
    """Control: n·softmax of |excess| / temperature over the n valid heads, the older rule that rho1 replaces."""

    temperature: float = 0.7

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        excess = excess_loss(signals.ce, required(signals.reference_ce, "softmax-excess", "reference_ce"))
        return softmax_over_heads(excess.abs(), signals.valid, self.temperature)

    def selected_counts(self, valid_per_row: Tensor, step: int) -> Tensor:
        return valid_per_row.sum(dim=0)

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        reference_ce = required(signals.reference_ce, "softmax-excess", "reference_ce")
        by_target = shift_to_heads(reference_ce, signals.valid.shape[-1]).flatten(0, 1)  # [P, H]
        valid = signals.valid.flatten(0, 1)

        def rule(positions: Tensor, ce: Tensor) -> Tensor:
            return softmax_over_heads((ce - by_target[positions]).abs(), valid[positions], self.temperature)

        return PointwiseHint(rule)


@dataclass(frozen=True)
class LabelledWeighting(HeadWeighting):
    """Control: head 0 whole, later heads keep the targets that the corpus's own labels call clean."""

    def compute_head_weights(self, signals: WeightingInputs) -> Tensor:
        clean = shift_to_heads(required(signals.noise, "labelled", "noise"), signals.valid.shape[-1]) == 0
        clean[..., 0] = True
        return (signals.valid & clean).float()

    def guess_weights(self, signals: WeightingInputs) -> WeightHint:
        return StaticHint(self.compute_head_weights(signals))


def _mix(x: Tensor) -> Tensor:
    """The 64-bit mixer of SplitMix (Steele et al., 2014), in int64 arithmetic that wraps."""
    x = x * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
