"""Weighted multi-token prediction on tensors: targets, losses, selection and weighting rules; no model, no files.

Selection and weighting meet the ranks of a process group where one is given.
"""

from wmtp_core.drafts import accepted_drafts, linear_argmax, linear_overlap
from wmtp_core.errors import UserError
from wmtp_core.losses.dense import compute_mtp_selective_weights, compute_weighted_mtp_loss, dense_cross_entropy
from wmtp_core.losses.distillation import Distillation
from wmtp_core.losses.fused import linear_cross_entropy, linear_distillation
from wmtp_core.losses.hints import GradientHint, WeightHint
from wmtp_core.losses.logit_transform import LogitTransform
from wmtp_core.losses.weighted import weighted_mtp_loss
from wmtp_core.selection import compute_rho1_stats, excess_loss, select_by_excess
from wmtp_core.targets import mtp_targets, shift_to_heads
from wmtp_core.weighting.controls import LabelledWeighting, RandomWeighting, SoftmaxExcessWeighting
from wmtp_core.weighting.critic import CriticWeighting
from wmtp_core.weighting.reach import ReachWeighting
from wmtp_core.weighting.rho1 import Rho1Weighting
from wmtp_core.weighting.rule import GradientPlan, HeadWeighting, WeightingInputs, WeightPlan
from wmtp_core.weighting.top_k import TopKWeighting
from wmtp_core.weighting.uniform import UniformWarmup, UniformWeighting

__all__ = [
    "CriticWeighting",
    "Distillation",
    "GradientHint",
    "GradientPlan",
    "HeadWeighting",
    "LabelledWeighting",
    "LogitTransform",
    "RandomWeighting",
    "ReachWeighting",
    "Rho1Weighting",
    "SoftmaxExcessWeighting",
    "TopKWeighting",
    "UniformWarmup",
    "UniformWeighting",
    "UserError",
    "WeightHint",
    "WeightPlan",
    "WeightingInputs",
    "accepted_drafts",
    "compute_mtp_selective_weights",
    "compute_rho1_stats",
    "compute_weighted_mtp_loss",
    "dense_cross_entropy",
    "excess_loss",
    "linear_argmax",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_overlap",
    "mtp_targets",
    "select_by_excess",
    "shift_to_heads",
    "weighted_mtp_loss",
]
