"""What a log interval needs to know of its micro-batches: sums on the device, read by the host once an interval."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from wmtp_core import excess_loss, shift_to_heads
from wmtp_train.ranks.lifecycle import fail_on_all_ranks
from wmtp_train.step import MicroBatchLoss

_NEVER = 2**62


class MetricAccumulator:
    """Sums of one log interval on this rank. `add` never synchronises the device; `read` does, over all ranks."""

    def __init__(self, horizon: int, kinds: list[str], device: torch.device) -> None:
        self.horizon, self.kinds, self.device = horizon, kinds, device
        # The first step at which each head's (and last, the value head's) loss was not finite. Survives `reset`.
        self.first_bad_step = torch.full((horizon + 1,), _NEVER, dtype=torch.int64, device=device)
        self.first_bad_gradient = torch.tensor(_NEVER, device=device)
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        heads = torch.zeros(self.horizon, dtype=torch.float64, device=self.device)
        self.valid, self.selected, self.ce, self.reference_ce = heads, heads.clone(), heads.clone(), heads.clone()
        self.threshold = torch.full_like(heads, torch.inf)  # smallest selected excess of the newest micro-batch
        # By kind of noise, 0 clean: targets of heads ≥ 1, and how many of them were selected.
        self.noise = torch.zeros(2, len(self.kinds) + 1, dtype=torch.float64, device=self.device)
        # loss, value loss, targets of the value loss, entropy of the weights, positions of that entropy
        self.scalars = torch.zeros(5, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def add(self, loss: MicroBatchLoss) -> None:
        """Take in one micro-batch."""
        signals, weights = loss.signals, loss.weights
        valid, selected = signals.valid, weights != 0
        self.valid += valid.sum(dim=(0, 1))
        self.selected += selected.sum(dim=(0, 1))
        ce = signals.ce.sum(dim=(0, 1), dtype=torch.float64)  # [H]
        self.ce += ce
        if signals.reference_ce is not None:
            reference = shift_to_heads(signals.reference_ce, self.horizon).where(valid, 0)
            self.reference_ce += reference.sum(dim=(0, 1), dtype=torch.float64)
            excess = excess_loss(signals.ce, signals.reference_ce).where(selected, torch.inf)
            self.threshold = excess.amin(dim=(0, 1)).double()
        if signals.noise is not None:
            kinds = shift_to_heads(signals.noise, self.horizon)[..., 1:].flatten()
            for row, mask in enumerate((valid, selected)):
                self.noise[row].index_add_(0, kinds, mask[..., 1:].flatten().double())
        shares = weights.double() / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        positions = valid.any(dim=-1).sum()
        entropy = -torch.xlogy(shares, shares).sum()
        self.scalars += torch.stack([loss.policy, loss.value_sum, loss.value_count, entropy, positions]).double()
        bad = ~torch.cat([ce, loss.value_sum.double().view(1)]).isfinite()
        self.first_bad_step = self.first_bad_step.minimum(torch.where(bad, signals.step + 1, _NEVER))

    def add_gradient(self, norm: Tensor, step: int) -> None:
        """Take in the global norm of a step's gradient; `step` counts from 1."""
        bad_step = torch.where(norm.to(self.device).isfinite(), _NEVER, step)
        self.first_bad_gradient = self.first_bad_gradient.minimum(bad_step)

    def read(self, steps: int) -> dict[str, float]:
        """This interval's figures over all ranks, by TensorBoard tag, and start the next. Every rank must call it.

        Args:
            steps: optimizer steps in the interval.
        """
        totals = torch.cat([self.valid, self.selected, self.ce, self.reference_ce, self.noise.flatten(), self.scalars])
        threshold = self.threshold.clone()
        dist.all_reduce(totals)
        dist.all_reduce(threshold, op=dist.ReduceOp.MIN)
        valid, selected, ce, reference_ce = totals[: 4 * self.horizon].view(4, -1).tolist()
        noise = totals[4 * self.horizon : -5].view(2, -1).tolist()
        loss, value_loss, value_count, entropy, positions = totals[-5:].tolist()
        figures = {"train/loss": loss / steps}
        for h in range(self.horizon):
            n = max(valid[h], 1)
            figures[f"ce/head_{h}"] = ce[h] / n
            figures[f"selected_count/head_{h}"] = selected[h]
            figures[f"selected_ratio/head_{h}"] = selected[h] / n
            if any(reference_ce):
                figures[f"reference_ce/head_{h}"] = reference_ce[h] / n
                figures[f"excess_mean/head_{h}"] = (ce[h] - reference_ce[h]) / n
                if threshold[h].isfinite():
                    figures[f"threshold/head_{h}"] = threshold[h].item()
        if value_count:
            figures["critic/value_loss"] = value_loss / value_count
            figures["critic/weight_entropy"] = entropy / max(positions, 1)
        figures |= noise_figures(noise[0], noise[1], self.kinds)
        self.reset()
        return figures

    def refuse_non_finite(self, last_good: Callable[[], str]) -> None:
        """Stop every rank if any loss or gradient since the start was not finite. Every rank must call it.

        Raises:
            UserError: on rank 0, as `fail_on_all_ranks` does; names the step, every rank whose loss was not finite (a
                step later all are), the head, and `last_good`, the checkpoint to go on from. Of a gradient whose losses
                were all finite only the step is known: it has been averaged over the ranks.
        """
        gathered = [torch.empty_like(self.first_bad_step) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, self.first_bad_step)
        first = torch.stack(gathered)  # [ranks, H+1]
        step, bad_gradient = int(first.min()), int(self.first_bad_gradient)
        if bad_gradient < step:
            fail_on_all_ranks(
                f"step {bad_gradient}: the gradient is not finite, though every rank's loss is; {last_good()}; "
                "lower optimizer.learning_rate or look at the data of that step, then --resume"
            )
        if step == _NEVER:
            return
        ranks, heads = zip(*(first == step).nonzero().tolist(), strict=True)
        name = f"head {heads[0]}" if heads[0] < self.horizon else "the value head"
        where = ", ".join(str(rank) for rank in sorted(set(ranks)))
        fail_on_all_ranks(
            f"step {step}: the loss of {name} on rank {where} is not finite; {last_good()}; "
            "lower optimizer.learning_rate or look at the data of that step, then --resume"
        )


def noise_figures(targets: list[float], selected: list[float], kinds: list[str]) -> dict[str, float]:
    """Precision and recall of "selected" against "clean", and for each kind of noise the share of it that is kept, and
    the precision against this kind alone (clean among what is selected of clean and this kind).

    Nothing where there is no noise, or where every target is selected.

    Args:
        targets: how many targets of each kind there were, the clean ones first.
        selected: how many of them were selected.
    """
    if not sum(targets[1:]) or selected == targets:
        return {}
    figures = {
        "noise/precision": selected[0] / max(sum(selected), 1),
        "noise/recall": selected[0] / max(targets[0], 1),
        "noise/kept/clean": selected[0] / max(targets[0], 1),
    }
    for kind, chosen, n in zip(kinds, selected[1:], targets[1:], strict=True):
        if n:
            figures[f"noise/kept/{kind}"] = chosen / n
            figures[f"noise/precision/{kind}"] = selected[0] / max(selected[0] + chosen, 1)
    return figures
