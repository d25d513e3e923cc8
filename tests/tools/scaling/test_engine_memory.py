from dataclasses import replace

import pytest
from scaling import engine_memory
from scaling.engines import Engine, read_engines

ENGINES = {engine.name: engine for engine in read_engines()}
SMALL, LARGE = 1000, 2_000_000_000


@pytest.mark.parametrize(
    ("name", "on_gpu", "in_main_memory"),
    [
        ("zero0", (4000, 4000, 0, 8000), 0),
        ("zero1", (2000, 2000, 4000, 3000), 0),
        ("zero2", (2000, 0, 1000, 3000), 0),
        ("zero3", (500, 0, 1000, 3000), 0),
        ("zero2_offload", (2000, 0, 1000, 0), 4500),
        ("zero3_offload", (0, 0, 0, 0), 5500),
    ],
)
def test_what_an_engine_holds(name: str, on_gpu: tuple[int, ...], in_main_memory: int) -> None:
    held = engine_memory.held_on_gpu(SMALL, 4, ENGINES[name])
    assert (held["parameters"], held["gradients"], held["sums"], held["optimizer"]) == on_gpu
    assert engine_memory.held_in_main_memory(SMALL, 4, ENGINES[name]) == in_main_memory


def _in_bf16(name: str) -> Engine:
    return replace(ENGINES[name], exchanged=2)


@pytest.mark.parametrize(
    ("engine", "small", "large"),
    [
        (ENGINES["zero0"], 4000, 2e9),
        (ENGINES["zero1"], 4000, 0),  # a large model's matrices are not joined with anything
        (ENGINES["zero2"], 6000, 3e9),
        (ENGINES["zero3"], 4000, 2e9),
        (_in_bf16("zero1"), 6000, 4e9),
        (_in_bf16("zero2"), 2000, 1e9),
        (_in_bf16("zero3"), 2000, 1e9),
    ],
)
def test_copies_while_gradients_are_exchanged(engine: Engine, small: int, large: float) -> None:
    assert engine_memory.exchange_copies(SMALL, engine) == small
    assert engine_memory.exchange_copies(LARGE, engine) == large


def test_buckets_and_gathered_parameters_are_of_deepspeed_s_sizes() -> None:
    assert [engine_memory.bucket(engine) for engine in ENGINES.values()] == [0, 0, 1e9, 2e9, 1e9, 2e9]
    assert [engine_memory.gathered(SMALL, engine) for engine in ENGINES.values()] == [0, 0, 0, 2000, 0, 2000]
    assert engine_memory.gathered(LARGE, ENGINES["zero3"]) == 2e9


def test_what_a_step_takes() -> None:
    taken = [engine_memory.step_buffers(SMALL, 4, engine) for engine in ENGINES.values()]
    assert taken == [4000, 1000, 1000, 2000, 0, 0]
    assert engine_memory.step_buffers(LARGE, 1, ENGINES["zero3"]) == 8e9
