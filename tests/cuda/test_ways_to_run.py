"""Attention kernels, compiled layers, checkpointing and Liger's kernels, against the plain policy on the CPU."""

from typing import get_args

import pytest
import torch

from wmtp_train.settings.sections import ModelSettings

pytestmark = pytest.mark.cuda
OPTIONS = ModelSettings.model_fields
ATTENTION = get_args(OPTIONS["attention"].annotation) if "attention" in OPTIONS else ()
WAYS = [{"attention": name} for name in ATTENTION]
WAYS += [{name: True} for name in ("gradient_checkpointing", "liger", "compile") if name in OPTIONS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["layer", "sequential"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_losses_and_gradients_are_those_of_the_plain_policy(device, losses_of, relative_error, way, kind, dtype):
    expected = losses_of(torch.device("cpu"), torch.float32, head_kind=kind)
    found = losses_of(device, dtype, head_kind=kind, **way)
    for exact, value in zip(expected, found, strict=True):
        assert relative_error(value, exact) <= (5e-2 if dtype == torch.bfloat16 else 1e-4)
