"""A policy's losses and gradients on the device against the CPU's, for every kind of heads."""

from typing import get_args

import pytest
import torch

from wmtp_train.settings.sections import ModelSettings

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("kind", get_args(ModelSettings.model_fields["head_kind"].annotation))
def test_every_kind_of_heads(device, losses_of, relative_error, kind):
    expected = losses_of(torch.device("cpu"), torch.float32, head_kind=kind)
    found = losses_of(device, torch.float32, head_kind=kind)
    low = losses_of(device, torch.bfloat16, head_kind=kind)
    for exact, full, half in zip(expected, found, low, strict=True):
        assert relative_error(full, exact) <= 1e-4
        assert relative_error(half, exact) <= 5e-2
