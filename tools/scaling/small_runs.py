"""The formulas against small models that really run, in this process and on two."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loss_variants import RHO1, LossVariant
from benchmarks.memory import peak_memory
from benchmarks.problems import LossShape, make_loss_problem
from scaling import compute, memory, storage, traffic, transient
from scaling.model_size import ModelSize, measure_model
from scaling.plan import Plan
from scaling.two_ranks import (
    ACCUMULATION,
    HORIZON,
    LENGTH,
    LLAMA,
    RANKS,
    ROWS,
    VOCABULARY,
    float_bytes,
    measure_two_ranks,
)
from wmtp_core import GradientGuess
from wmtp_core.chunk_of_logits import rows_per_chunk
from wmtp_core.guesses import KnownAhead
from wmtp_core.selection import keep_top
from wmtp_models import MtpForCausalLM, build_policy
from wmtp_train.data import PreparedData, score

CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
OURS = LossVariant("ours, rho1", RHO1)
_TINY = LossShape(vocab_size=512, positions=16, hidden_size=16)


@dataclass(frozen=True)
class Check:
    """One formula beside what was seen."""

    name: str
    calculated: float
    measured: float
    tolerance: float
    """Relative; 0: to the last digit."""

    @property
    def holds(self) -> bool:
        """Whether they agree."""
        return abs(self.measured - self.calculated) <= self.tolerance * self.calculated


def checks() -> Iterator[Check]:
    """All of them; the two processes start last."""
    yield from _parameters()
    yield from _activations()
    yield from _operations()
    yield from _buffers()
    yield from _files()
    yield from _two_ranks()


def _model(layers: int = 3, horizon: int = HORIZON, tied: bool = False) -> tuple[MtpForCausalLM, ModelSize]:
    config = LLAMA | {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    policy = build_policy(config, VOCABULARY, horizon)
    return policy, measure_model(config | {"vocab_size": VOCABULARY}, horizon)


def _plan(policy: ModelSize) -> Plan:
    return Plan(policy, policy, RANKS, RANKS, ROWS, ACCUMULATION, LENGTH, RHO1.k_percent, 2, 1e6, 1e12, 0.5)


def _parameters() -> Iterator[Check]:
    for tied in (False, True):
        policy, size = _model(tied=tied)
        counted = sum(parameter.numel() for parameter in policy.parameters())
        yield Check(f"parameters, {'tied' if tied else 'untied'}", size.parameters, counted, 0)


def _activations() -> Iterator[Check]:
    for dtype in (torch.bfloat16, torch.float32):
        kept = [_kept_bytes(_model(layers)[0].to(dtype)) for layers in (3, 4)]
        plan, name = _plan(_model()[1]), str(dtype).removeprefix("torch.")
        layer = transient.layer_activations(plan, dtype.itemsize)
        yield Check(f"activations of a layer, {name}, B", layer, kept[1] - kept[0], 0)
        whole = transient.activations(plan, dtype.itemsize, checkpointing=False)
        yield Check(f"activations of trunk and heads, {name}, B", whole, kept[0], 0.05)
        policy = _model()[0].to(dtype)
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        before_backward = transient.activations(plan, dtype.itemsize, checkpointing=True) - layer
        yield Check(f"activations, checkpointed, {name}, B", before_backward, _kept_bytes(policy), 0.05)


def _kept_bytes(policy: MtpForCausalLM) -> int:
    """What a forward leaves behind for the backward, two documents a row, without the states that the loss is given."""
    position_ids = (torch.arange(LENGTH) % (LENGTH // 2)).expand(ROWS, -1)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    saved: list[Tensor] = []  # what autograd holds is not seen from Python unless somebody else holds it, too

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    policy.train()
    before = float_bytes()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = policy.head_logits(ids, position_ids)  # [B, S, H, V]
    states = ids.numel() * HORIZON * LLAMA["hidden_size"] * policy.dtype.itemsize
    return float_bytes() - before - logits.nbytes - states


def _operations() -> Iterator[Check]:
    policy, size = _model()
    policy.to(torch.bfloat16)  # in float32 the loss sums by an operation that the counter does not know
    length = 16 * LENGTH  # the last positions lack targets, which costs less: let them be few
    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    with _attention_as_products(), FlopCounterMode(display=False) as counter:
        policy.head_logits(ids)
    whole = (compute.forward(size, length) + compute.loss_pass(size)) * length
    yield Check("forward, FLOP", whole, counter.get_total_flops(), 0)
    draw = torch.rand(1, length, HORIZON, generator=torch.Generator().manual_seed(1))
    draw[..., 0] = 0  # head 0 learns everything
    for name, k_percent in (("all learned", None), ("selected, k = 0.6", 0.6)):
        weights = (draw < (k_percent or 1)).float()
        guess = GradientGuess(KnownAhead(weights), torch.ones(HORIZON))
        with _attention_as_products(), FlopCounterMode(display=False) as counter:
            output = policy(ids, guess=lambda _values, guess=guess: guess)
            (output.ce * weights).sum().backward()
        step = compute.training_step(size, length, k_percent, checkpointing=False) * length
        yield Check(f"forward and backward, {name}, FLOP", step, counter.get_total_flops(), 0.02)


def _attention_as_products() -> AbstractContextManager[None]:
    """Attention of which the counter sees every product."""
    return sdpa_kernel(SDPBackend.MATH)


def _buffers() -> Iterator[Check]:
    shape = LossShape(vocab_size=32768, positions=1024, hidden_size=128, horizon=HORIZON)
    weight = torch.empty(shape.vocab_size, shape.hidden_size)
    widths = {"vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size}
    size = replace(_model()[1], rows_of_logits=rows_per_chunk(weight), **widths)
    plan = replace(_plan(size), micro_batch=shape.batch, sequence_length=shape.positions // shape.batch)
    given = 4 * shape.positions * HORIZON * shape.hidden_size  # the states themselves
    peak = peak_memory(partial(_prepare_loss, _TINY), partial(_prepare_loss, shape), CPU)
    yield Check("loss op on a CPU, float32, B", transient.loss_buffers(plan, 4) - given, peak, 0.1)
    values = 2**20
    peak = peak_memory(partial(_prepare_selection, 1000), partial(_prepare_selection, values), CPU)
    calculated = (transient.BYTES_PER_COMPARED_VALUE - 9) * values
    yield Check("selection on a CPU beyond the gathered values, B", calculated, peak, 0.1)


def _prepare_loss(shape: LossShape) -> Callable[[], object]:
    return partial(OURS, make_loss_problem(shape, CPU, torch.float32))


def _prepare_selection(values: int) -> Callable[[], object]:
    return partial(keep_top, torch.randn(1, values), torch.ones(1, values, dtype=torch.bool), RHO1.k_percent)


def _files() -> Iterator[Check]:
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
        policy, size = _model()
        policy.to(torch.bfloat16).save_pretrained(Path(folder) / "model")
        yield Check("final model, B", storage.exported(size.parameters, 1), _size_of(Path(folder) / "model"), 0.02)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _two_ranks() -> Iterator[Check]:
    seen, selection = measure_two_ranks(STAGES)
    for stage, measured in seen.items():
        size, where = measured.parameters, f"stage {stage}, 2 processes"
        held = sum(memory.held_by_engine(size, RANKS, stage).values())
        yield Check(f"parameters, gradients, optimizer, {where}, B", held, measured.held, 0.01)
        for kind, message in traffic.engine_messages(size, stage, ACCUMULATION).items():
            yield Check(f"{kind} in a step, {where}, B", message, measured.messages[kind], 0.01)
        yield Check(f"checkpoint, {where}, B", storage.checkpoint(size, stage), measured.checkpoint, 0.03)
    yield Check(
        "selection's gather, 2 processes, B", RANKS * traffic.selection_message(HORIZON, ROWS * LENGTH), selection, 0
    )
