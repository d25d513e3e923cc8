"""Weighted multi-token prediction on plain tensors. Pure functions: no model, no input or output, no configuration."""

from wmtp_core.drafts import accepted_drafts, linear_argmax
from wmtp_core.errors import UserError
from wmtp_core.losses.dense import dense_cross_entropy
from wmtp_core.losses.fused import GradientHint, WeightHint, linear_cross_entropy
from wmtp_core.losses.weighted import compute_weighted_mtp_loss, weighted_mtp_loss
from wmtp_core.selection import (
    compute_mtp_selective_weights,
    compute_rho1_stats,
    excess_loss,
    select_by_excess,
)
from wmtp_core.targets import mtp_targets, shift_to_heads
from wmtp_core.weighting.controls import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting
from wmtp_core.weighting.rule import (
    CriticWeighting,
    HeadWeighting,
    Rho1Weighting,
    UniformWarmup,
    UniformWeighting,
    WeightingInputs,
)

__all__ = [
    "CriticWeighting",
    "GradientHint",
    "HeadWeighting",
    "LabelledWeighting",
    "RandomWeighting",
    "Rho1Weighting",
    "SoftmaxExcessWeighting",
    "UniformWarmup",
    "UniformWeighting",
    "UserError",
    "WeightHint",
    "WeightingInputs",
    "accepted_drafts",
    "compute_mtp_selective_weights",
    "compute_rho1_stats",
    "compute_weighted_mtp_loss",
    "dense_cross_entropy",
    "excess_loss",
    "linear_argmax",
    "linear_cross_entropy",
    "mtp_targets",
    "select_by_excess",
    "shift_to_heads",
    "weighted_mtp_loss",
]
