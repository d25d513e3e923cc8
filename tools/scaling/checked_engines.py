"""DeepSpeed engines of the files of ds_configs, on two processes, against the formulas."""

from collections.abc import Iterator
from dataclasses import replace

from scaling import engine_memory, storage, traffic
from scaling.check import Check
from scaling.engines import Engine, read_engines
from scaling.small_model import ACCUMULATION, HORIZON, LENGTH, RANKS, ROWS
from scaling.two_ranks import BUCKET, Measured, measure_two_ranks


def check_engines() -> Iterator[Check]:
    """What each holds, moves and writes; and the gather of the selection."""
    seen, selection = measure_two_ranks()
    for engine in read_engines():
        zero = engine.zero.model_copy(update={"reduce_bucket_size": BUCKET})
        yield from _check_engine(replace(engine, zero=zero), seen[engine.name])
    calculated = RANKS * traffic.selection_message(HORIZON, ROWS * LENGTH)
    yield Check("selection's gather, 2 processes, B", calculated, selection, 0)


def _check_engine(engine: Engine, measured: Measured) -> Iterator[Check]:
    size, stage = measured.parameters, engine.zero.stage
    held = sum(engine_memory.held_on_gpu(size, RANKS, engine).values())
    held += engine_memory.held_in_main_memory(size, RANKS, engine)
    if engine.offloads and stage == 2:
        held += 2 * 2 * measured.largest  # two copies in bf16, which in a large model are nothing beside the rest
    bucket, copies = engine_memory.bucket(engine), engine_memory.exchange_copies(size, engine)
    kept = bucket if stage == 3 else 0  # stage 2 makes a new one for every backward
    yield Check(f"{engine.name}: parameters, gradients, optimizer, B", held + kept, measured.held, 0.01)
    yield Check(f"{engine.name}: while gradients are exchanged, B", held + bucket + copies, measured.exchanging, 0.02)
    for kind, message in traffic.engine_messages(size, engine, ACCUMULATION).items():
        yield Check(f"{engine.name}: {kind} in a step, B", message, measured.messages[kind], 0.01)
    yield Check(f"{engine.name}: checkpoint, B", storage.checkpoint(size, stage), measured.checkpoint, 0.03)
