"""All that a rule may look at in one value, as tests find it handy: its inputs, the policy's losses and the values."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from wmtp_core import HeadWeighting, WeightingInputs


@dataclass(frozen=True)
class Signals(WeightingInputs):
    ce: Tensor | None = None
    values: Tensor | None = None

    @property
    def inputs(self) -> WeightingInputs:
        return WeightingInputs(**{field.name: getattr(self, field.name) for field in fields(WeightingInputs)})


def weights_of(rule: HeadWeighting, signals: Signals) -> Tensor:
    """The weights that a rule plans for a micro-batch, once its losses are there."""
    return rule.plan(signals.inputs).weights(signals.ce, signals.values)


def hint_of(rule: HeadWeighting, signals: Signals, chunks: int) -> Tensor:
    """What a rule's hint says of a micro-batch whose losses come in strided chunks, `[B, S, H]`."""
    hint = rule.plan(signals.inputs).hint(signals.values)
    hinted = torch.empty_like(signals.ce).flatten(0, 1)
    for chunk in range(chunks):
        positions = torch.arange(chunk, len(hinted), chunks)
        hinted[positions] = hint(positions, signals.ce.flatten(0, 1)[positions])
    return hinted.view_as(signals.ce)
