"""Weighted multi-token prediction on plain tensors. Pure functions: no model, no input or output, no configuration."""

from wmtp_core.controls import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting
from wmtp_core.cross_entropy import dense_cross_entropy
from wmtp_core.errors import UserError
from wmtp_core.fused_cross_entropy import GradientGuess, WeightGuess, linear_cross_entropy
from wmtp_core.loss import compute_weighted_mtp_loss, weighted_mtp_loss
from wmtp_core.predictions import kept_drafts, linear_argmax
from wmtp_core.selection import (
    compute_mtp_selective_weights,
    compute_rho1_stats,
    excess_loss,
    select_top_excess,
)
from wmtp_core.targets import mtp_targets, shift_to_heads
from wmtp_core.weighting import (
    CriticWeighting,
    HeadWeighting,
    Rho1Weighting,
    TokenSignals,
    UniformAtFirst,
    UniformWeighting,
)

__all__ = [
    "CriticWeighting",
    "GradientGuess",
    "HeadWeighting",
    "LabelledWeighting",
    "RandomWeighting",
    "Rho1Weighting",
    "SoftmaxExcessWeighting",
    "TokenSignals",
    "UniformAtFirst",
    "UniformWeighting",
    "UserError",
    "WeightGuess",
    "compute_mtp_selective_weights",
    "compute_rho1_stats",
    "compute_weighted_mtp_loss",
    "dense_cross_entropy",
    "excess_loss",
    "kept_drafts",
    "linear_argmax",
    "linear_cross_entropy",
    "mtp_targets",
    "select_top_excess",
    "shift_to_heads",
    "weighted_mtp_loss",
]
