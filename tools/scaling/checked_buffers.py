"""The loss op, the selection and the files of a run against the formulas."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import torch

from benchmarks.loss_variants import RHO1, LossVariant
from benchmarks.memory import Prepare, peak_memory
from benchmarks.problems import LossShape, make_loss_problem
from scaling import storage, transient
from scaling.check import Check
from scaling.small_model import HORIZON, K_PERCENT, small_model, small_plan
from wmtp_core.losses.logits_chunk import rows_per_chunk
from wmtp_core.selection import topk_mask
from wmtp_train.data import PreparedData, score

CPU = torch.device("cpu")
OURS = LossVariant("ours, rho1", RHO1)
_TINY = LossShape(vocab_size=512, positions=16, hidden_size=16)


def check_buffers() -> Iterator[Check]:
    """Peaks, each in a process of its own."""
    shape = LossShape(vocab_size=32768, positions=1024, hidden_size=128, horizon=HORIZON)
    weight = torch.empty(shape.vocab_size, shape.hidden_size)
    widths = {"vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size}
    size = replace(small_model()[1], rows_of_logits=rows_per_chunk(weight), **widths)
    plan = replace(small_plan(size), micro_batch=shape.batch, sequence_length=shape.positions // shape.batch)
    assert plan.k_percent == RHO1.k_percent
    given = 4 * shape.positions * HORIZON * shape.hidden_size  # the states themselves
    peak = _least_peak(partial(_prepare_loss, _TINY), partial(_prepare_loss, shape))
    yield Check("loss op on a CPU, float32, B", transient.loss_buffers(plan, 4) - given, peak, 0.1)
    values = 2**20
    peak = _least_peak(partial(_prepare_selection, 1000), partial(_prepare_selection, values))
    calculated = (transient.BYTES_PER_COMPARED_VALUE - 9) * values
    yield Check("selection on a CPU beyond the gathered values, B", calculated, peak, 0.1)


def _least_peak(warm_up: Prepare, prepare: Prepare) -> int:
    """Of three processes: what an allocator maps beside the operation's own memory varies, and only ever adds."""
    return min(peak_memory(warm_up, prepare, CPU) for _ in range(3))


def _prepare_loss(shape: LossShape) -> Callable[[], object]:
    return partial(OURS, make_loss_problem(shape, CPU, torch.float32))


def _prepare_selection(values: int) -> Callable[[], object]:
    return partial(topk_mask, torch.randn(1, values), torch.ones(1, values, dtype=torch.bool), K_PERCENT)


def check_files() -> Iterator[Check]:
    """Sizes on disk."""
    rows, length = 256, 1024
    tokens = rows * length
    columns = {"input_ids": [[0] * length] * rows, "document_lengths": [[length]] * rows, "document_ids": [[0]] * rows}
    packed = datasets.Dataset.from_dict(columns | {"labels": columns["input_ids"]})
    prepared = PreparedData(Path(), packed, {}, length, [], rows, tokens, 0)
    with tempfile.TemporaryDirectory() as folder:
        for dtype, element in (("float32", 4), ("float16", 2)):
            output = Path(folder) / dtype
            score(prepared, lambda batch: torch.ones(batch.input_ids.shape), output, "", 0, 1, rows, dtype=dtype)
            yield Check(f"scores in {dtype}, B", storage.scores(tokens, element), _size_of(output), 0.01)
        policy, size = small_model()
        policy.to(torch.bfloat16).save_pretrained(Path(folder) / "model")
        yield Check("final model, B", storage.exported(size.parameters, 1), _size_of(Path(folder) / "model"), 0.02)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
