"""What a log interval needs to know of its micro-batches: sums on the device, read by the host once an interval."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from wmtp_core import excess_loss, shift_to_heads
from wmtp_train.metrics.labels import label_metrics
from wmtp_train.ranks.collective import fail_on_all_ranks
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.step import MicroBatchLoss

_NEVER = 2**62  # exact as a float, too


@dataclass
class IntervalSums:
    """Sums over this rank's micro-batches of one interval, float64."""

    valid: Tensor  # [H]
    selected: Tensor  # [H]
    ce: Tensor  # [H], nats
    losses: Tensor  # [H], what was weighted
    reference_ce: Tensor  # [H], nats
    labeled: Tensor  # [L+1], targets of heads ≥ 1 by token label, 0 unlabeled
    labeled_selected: Tensor  # [L+1], how many of them were selected
    loss: Tensor
    value_loss: Tensor
    value_count: Tensor
    auxiliary: Tensor
    entropy: Tensor  # of the weights over heads, nats
    positions: Tensor  # of that entropy

    @classmethod
    def zeros(cls, horizon: int, labels: int, device: torch.device) -> "IntervalSums":
        """Return sums of nothing."""
        sizes = {
            "valid": (horizon,),
            "selected": (horizon,),
            "ce": (horizon,),
            "losses": (horizon,),
            "reference_ce": (horizon,),
        }
        sizes |= {"labeled": (labels + 1,), "labeled_selected": (labels + 1,)}
        empty = {field.name: sizes.get(field.name, ()) for field in fields(cls)}
        return cls(**{name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in empty.items()})


class MetricAccumulator:
    """Metrics of one log interval. `add` never waits for the device; `read` does once, over all ranks.

    Args:
        horizon: number of heads H.
        label_names: of the token labels 1, 2, …
        mesh: the processes.
    """

    def __init__(self, horizon: int, label_names: tuple[str, ...], mesh: Mesh) -> None:
        self.horizon, self.label_names, self.mesh = horizon, label_names, mesh
        # The first step at which each head's (and last, the value head's) loss was not finite. Survives `reset`.
        self.first_bad_step = torch.full((horizon + 1,), _NEVER, dtype=torch.int64, device=mesh.device)
        self.first_bad_gradient = torch.tensor(_NEVER, device=mesh.device)
        self._first_bad: tuple[Tensor, Tensor] | None = None  # of every rank, on the host, while they hold
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.sums = IntervalSums.zeros(self.horizon, len(self.label_names), self.mesh.device)
        self.threshold = torch.full_like(self.sums.ce, torch.inf)  # smallest selected excess of the newest micro-batch

    @torch.no_grad()
    def add(self, loss: MicroBatchLoss) -> None:
        """Add one micro-batch."""
        sums, inputs, weights = self.sums, loss.inputs, loss.weights
        valid, selected = inputs.valid, weights != 0
        sums.valid += valid.sum(dim=(0, 1))
        sums.selected += selected.sum(dim=(0, 1))
        ce = loss.ce.sum(dim=(0, 1), dtype=torch.float64)  # [H]
        losses = loss.losses.sum(dim=(0, 1), dtype=torch.float64)  # [H]
        sums.ce += ce
        sums.losses += losses
        if inputs.reference_ce is not None:
            reference = shift_to_heads(inputs.reference_ce, self.horizon).where(valid, 0)
            sums.reference_ce += reference.sum(dim=(0, 1), dtype=torch.float64)
            excess = excess_loss(loss.ce, inputs.reference_ce).where(selected, torch.inf)
            self.threshold = excess.amin(dim=(0, 1)).double()
        if inputs.token_labels is not None:
            labels = shift_to_heads(inputs.token_labels, self.horizon)[..., 1:].flatten()
            for total, mask in ((sums.labeled, valid), (sums.labeled_selected, selected)):
                total.index_add_(0, labels, mask[..., 1:].flatten().double())
        shares = weights.double() / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        sums.entropy -= torch.xlogy(shares, shares).sum()
        sums.positions += valid.any(dim=-1).sum()
        sums.loss += loss.policy
        sums.value_loss += loss.value_sum
        sums.value_count += loss.value_count
        if loss.auxiliary is not None:
            sums.auxiliary += loss.auxiliary
        bad = ~torch.cat([ce + losses, loss.value_sum.double().view(1)]).isfinite()
        self.first_bad_step = self.first_bad_step.minimum(torch.where(bad, inputs.step + 1, _NEVER))
        self._first_bad = None

    def add_gradient(self, norm: Tensor, step: int) -> None:
        """Add the global norm of a step's gradient; `step` counts from 1."""
        bad_step = torch.where(norm.to(self.mesh.device).isfinite(), _NEVER, step)
        self.first_bad_gradient = self.first_bad_gradient.minimum(bad_step)
        self._first_bad = None

    def read(self, steps: int, gradient_norm: Tensor | None = None) -> dict[str, float]:
        """Return this interval's metrics over all ranks, by TensorBoard tag, and start the next one.

        Every rank must call it. One tensor is copied to the host, for `refuse_non_finite` too.

        Args:
            steps: optimizer steps in the interval.
            gradient_norm: a scalar, of the newest step; None: it is not reported.
        """
        mine = [getattr(self.sums, field.name) for field in fields(self.sums)]
        norm = torch.zeros(()) if gradient_norm is None else gradient_norm
        *parts, thresholds, bad_steps, bad_gradients, norms = self._gather(
            *mine, self.threshold, self.first_bad_step, self.first_bad_gradient, norm
        )
        self._first_bad = bad_steps, bad_gradients
        sums, threshold = IntervalSums(*(part.sum(dim=0) for part in parts)), thresholds.amin(dim=0).tolist()
        valid = sums.valid.clamp(min=1)
        by_head = {
            "ce": sums.ce / valid,
            "selected_count": sums.selected,
            "selected_ratio": sums.selected / valid,
        }
        if not sums.losses.equal(sums.ce):
            by_head["distillation"] = sums.losses / valid
        if sums.reference_ce.any():
            by_head |= {
                "reference_ce": sums.reference_ce / valid,
                "excess_mean": (sums.ce - sums.reference_ce) / valid,
            }
        metrics = {"train/weighted_loss": sums.loss.item() / steps}
        if gradient_norm is not None:
            metrics["train/gradient_norm"] = norms[0].item()
        metrics |= {f"{name}/head_{h}": value for name, row in by_head.items() for h, value in enumerate(row.tolist())}
        if sums.reference_ce.any():
            metrics |= {f"threshold/head_{h}": t for h, t in enumerate(threshold) if abs(t) != torch.inf}
        if sums.value_count:
            metrics["critic/value_loss"] = (sums.value_loss / sums.value_count).item()
            metrics["critic/weight_entropy"] = (sums.entropy / sums.positions.clamp(min=1)).item()
        if sums.auxiliary:
            metrics["train/auxiliary_loss"] = sums.auxiliary.item() / steps
        metrics |= label_metrics(sums.labeled.tolist(), sums.labeled_selected.tolist(), self.label_names)
        self.reset()
        return metrics

    def refuse_non_finite(self, last_good: Callable[[], str]) -> None:
        """Stop every rank if any loss or gradient since the start was not finite. Every rank must call it.

        Args:
            last_good: a clause that names the checkpoint to go on from.

        Raises:
            UserError: as `fail_on_all_ranks` does. It names the step, every rank whose loss was not finite there (a
                step later all are) and the head. Of a gradient whose losses were all finite only the step is known: it
                has been averaged over the ranks.
        """
        if self._first_bad is None:
            bad_steps, bad_gradients = self._gather(self.first_bad_step, self.first_bad_gradient)
            self._first_bad = bad_steps, bad_gradients
        first, gradients = self._first_bad  # [R, H+1], [R]
        step, bad_gradient = int(first.min()), int(gradients.min())
        if bad_gradient < step:
            what = f"step {bad_gradient}: the gradient is not finite, though every rank's loss is"
        elif step < _NEVER:
            ranks, heads = zip(*(first == step).nonzero().tolist(), strict=True)
            name = f"head {heads[0]}" if heads[0] < self.horizon else "the value head"
            where = ", ".join(str(rank * self.mesh.sequence.count) for rank in sorted(set(ranks)))
            what = f"step {step}: the loss of {name} on rank {where} is not finite"
        else:
            return
        fix = "lower optimizer.learning_rate or look at the data of that step, then --resume"
        fail_on_all_ranks(self.mesh, f"{what}; {last_good()}; {fix}")

    def _gather(self, *tensors: Tensor) -> list[Tensor]:
        """Return every rank's tensors, `[R, …]` each, float64 on the host: in one collective and one copy."""
        mine = torch.cat([tensor.to(self.mesh.device, torch.float64).flatten() for tensor in tensors])
        parts = self.mesh.all_gather(mine).cpu().split([tensor.numel() for tensor in tensors], dim=1)
        return [part.reshape(-1, *tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
