"""Products of as many rows as the device says, interpreted, against torch in float64; and compiled for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")  # before what imports it
from wmtp_core.counted_products import add_products, write_products

PRECISION = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
ROWS, DEPTH, COLUMNS, FIRST = 150, 70, 130, 4


def drawn(*shape, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.fixture
def order():
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))


def close(found, exact, dtype):
    return (found.double() - exact).norm() <= PRECISION[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize(("count", "last"), [(0, None), (4, None), (5, None), (100, None), (150, 81), (20, 81)])
def test_rows_are_written_and_others_left(order, count, last, b_transposed, dtype):
    a, b = drawn(ROWS, DEPTH, dtype=dtype), drawn(DEPTH, COLUMNS, dtype=dtype)
    b = b.T.contiguous().T if b_transposed else b
    rows = order[FIRST : max(FIRST, min(count, last or ROWS))]
    leave = torch.arange(ROWS) % 3 == 0
    out = torch.ones(ROWS, COLUMNS, dtype=dtype)
    write_products(out, a, b, order, torch.tensor([count]), FIRST, last, leave=leave)
    written = torch.zeros(ROWS, dtype=torch.bool)
    written[rows] = True
    written &= ~leave
    assert (out[~written] == 1).all()
    assert close(out[written], a[written].double() @ b.double(), dtype)
    chunk = torch.ones(ROWS, COLUMNS, dtype=dtype)  # row after row, and from there back to where they belong
    write_products(chunk, a, b, order, torch.tensor([count]), FIRST, last, out_ordered=False)
    assert close(chunk[: len(rows)], a[rows].double() @ b.double(), dtype)
    assert (chunk[len(rows) :] == 1).all()
    back = torch.ones(ROWS, DEPTH, dtype=dtype)
    write_products(back, chunk, b.T, order, torch.tensor([count]), FIRST, last, a_ordered=False)
    assert close(back[rows], chunk[: len(rows)].double() @ b.T.double(), dtype)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("count", "last"), [(0, None), (4, None), (5, None), (100, None), (150, 81), (20, 81)])
def test_sums_over_rows_are_added(order, count, last, dtype):
    a, b = drawn(ROWS, DEPTH, dtype=dtype), drawn(ROWS, COLUMNS, dtype=dtype)
    rows = order[FIRST : max(FIRST, min(count, last or ROWS))]
    for ordered, first_factor in ((True, a), (False, a[order[FIRST:]])):
        out = drawn(DEPTH, COLUMNS, dtype=torch.float32)
        before = out.double()
        add_products(out, first_factor, b, order, torch.tensor([count]), FIRST, last, a_ordered=ordered)
        exact = before + a[rows].double().T @ b[rows].double()
        assert (out.double() - exact).norm() <= 1e-6 * exact.norm()  # in float32, whatever the factors are
        assert count > FIRST or torch.equal(out.double(), before)


@pytest.mark.slow
def test_compiled_for_an_h100_they_use_its_tensor_cores_load_widely_and_spill_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).parent / "kernels_for_a_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    kernels = json.loads(done.stdout)
    assert {name for name, takes in kernels.items() if takes["tensor_cores"]} == {
        "rows to rows",
        "rows to a chunk",
        "sums",
    }
    assert {name for name, takes in kernels.items() if takes["wide"]} >= {"losses", "gradients"}
    for name, takes in kernels.items():
        assert takes["spilled"] == 0, name
        assert takes["shared"] <= 99 * 1024, name  # the least that a GPU of compute capability 8 has
        assert takes["registers"] * takes["threads"] * 2 <= 65536, name  # two programs at least on each multiprocessor
