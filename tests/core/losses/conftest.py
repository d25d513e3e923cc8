"""The fused loss in chunks of several sizes, and in the form for an accelerator."""

import pytest
import torch
from fused_problems import as_if_on_accelerator

import wmtp_core.losses.fused


@pytest.fixture
def set_rows_per_chunk(monkeypatch):
    """Sets how many rows a chunk holds."""
    return lambda rows: monkeypatch.setattr(wmtp_core.losses.fused, "rows_per_chunk", lambda weight: rows)


@pytest.fixture(params=[1, 7, 2**20], ids=["row by row", "7 rows a chunk", "one chunk"])
def chunked(request, set_rows_per_chunk):
    set_rows_per_chunk(request.param)


@pytest.fixture(params=[False, True], ids=["as on a CPU", "as on an accelerator"])
def on_accelerator(request, monkeypatch):
    """The form for an accelerator, run operation by operation here."""
    as_if_on_accelerator(monkeypatch, request.param)
    with torch.compiler.set_stance("force_eager"):
        yield
