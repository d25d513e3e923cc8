"""The fused loss in chunks of several sizes, and in the form for an accelerator."""

import pytest
import torch
from fused_problems import as_if_on_accelerator

import wmtp_core.losses.fused


@pytest.fixture
def set_rows_per_chunk(monkeypatch):
    """Sets how many rows a chunk holds."""
    return lambda rows: monkeypatch.setattr(wmtp_core.losses.fused, "rows_per_chunk", lambda weight: rows)


CPU, ACCELERATOR, GPU = "as on a CPU", "as on an accelerator", "as on a GPU"
ROWS = {"row by row": 1, "7 rows a chunk": 7, "one chunk": 2**20}


@pytest.fixture(params=[CPU, ACCELERATOR, GPU])
def on_accelerator(request, monkeypatch):
    """The forms for an accelerator, run operation by operation, and for a GPU, its kernels interpreted."""
    as_if_on_accelerator(monkeypatch, request.param != CPU, triton=request.param == GPU)
    with torch.compiler.set_stance("force_eager"):
        yield


# Interpreted kernels take long: they are tried with chunks of one size.
FORMS = [(rows, device) for rows in ROWS for device in (CPU, ACCELERATOR)] + [("7 rows a chunk", GPU)]


@pytest.fixture(params=FORMS, ids=", ".join)
def form(request, monkeypatch, set_rows_per_chunk):
    """Every form, in chunks of several sizes."""
    rows, device = request.param
    set_rows_per_chunk(ROWS[rows])
    as_if_on_accelerator(monkeypatch, device != CPU, triton=device == GPU)
    with torch.compiler.set_stance("force_eager"):
        yield
