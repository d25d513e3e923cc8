"""logits_chunk.py: the form that is compiled for an accelerator, compiled for a CPU here, against the plain one."""

import pytest
import torch

from wmtp_core.losses import logits_chunk
from wmtp_core.losses.compiled_chunk import CompiledChunkedLogits
from wmtp_core.losses.logits_chunk import ChunkedLogits, rows_per_chunk

ROWS, WIDTH, VOCABULARY = 13, 8, 70


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_plain_give_the_same(dtype):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).to(dtype)
    plain, compiled = ChunkedLogits(weight, ROWS), CompiledChunkedLogits(weight, ROWS)
    precision = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    for rows in (ROWS, 5, ROWS - 1):  # the last chunk of a batch is shorter
        hidden = (3 * torch.randn(rows, WIDTH, generator=draw)).to(dtype)
        targets = torch.randint(VOCABULARY, (rows,), generator=draw)
        for kept in (None, torch.tensor([0, 2, 3])):
            chunks = [logits.form(hidden, targets) for logits in (compiled, plain)]
            torch.testing.assert_close(*(chunk.losses for chunk in chunks), rtol=1e-5, atol=1e-5)
            grad_losses = torch.rand(rows if kept is None else len(kept), generator=draw) - 0.5
            gradients = [chunk.gradients(kept, grad_losses) for chunk in chunks]
            assert [g.dtype for g in gradients] == [dtype, dtype]
            torch.testing.assert_close(*gradients, **precision)


def test_a_row_of_no_gradient_gives_nothing_whatever_its_logits():
    weight = torch.ones(VOCABULARY, WIDTH)
    logits = CompiledChunkedLogits(weight, 2)
    hidden = torch.full((2, WIDTH), torch.nan)
    with torch.compiler.set_stance("force_eager"):
        gradients = logits.form(hidden, torch.tensor([0, 1])).gradients(None, torch.tensor([0.0, 1.0]))
    assert (gradients[0] == 0).all()
    assert gradients[1].isnan().all()


@pytest.mark.parametrize(("vocabulary", "rows"), [(2**13, 1536), (2**15, 384), (2**17, 384)])
def test_a_chunk_is_never_of_few_rows(vocabulary, rows):
    assert rows_per_chunk(torch.empty(vocabulary, 1)) == rows


@pytest.mark.parametrize(("vocabulary", "dtype", "gigabytes", "rows"), [
    (2**15, torch.bfloat16, 80, 16384), (2**17, torch.bfloat16, 80, 4608), (2**17, torch.float32, 80, 2304),
    (2**17, torch.bfloat16, 8, 1024),
])  # fmt: skip
def test_a_chunk_is_a_part_of_what_memory_a_device_has(monkeypatch, vocabulary, dtype, gigabytes, rows):
    monkeypatch.setattr(logits_chunk, "device_memory", lambda device: gigabytes * 10**9)
    assert rows_per_chunk(torch.empty(vocabulary, 1, dtype=dtype, device="meta")) == rows
