"""Where memory runs out, one line says what would fit."""

import pytest
import torch

from wmtp_core import UserError
from wmtp_train import trainer as trainer_module
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.out_of_memory import explain_out_of_memory_without_training, is_out_of_memory, ways_out
from wmtp_train.run import Run
from wmtp_train.step import Step

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free. If reserved but unallocated memory is "
    "large try setting PYTORCH_ALLOC_CONF"
)
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")


def fail(error):
    def raising(*args, **kwargs):
        raise error

    return raising


def in_backward(monkeypatch, error):
    compute = Step.loss

    def loss(self, *args):
        found = compute(self, *args)
        found.total.register_hook(fail(error))
        return found

    monkeypatch.setattr(Step, "loss", loss)


PLACES = {
    "the policy onto the device": lambda m, error: m.setattr(trainer_module, "ZeroEngine", fail(error)),
    "forward": lambda m, error: m.setattr(Step, "loss", fail(error)),
    "backward": in_backward,
    "optimizer": lambda m, error: m.setattr(ZeroEngine, "backward_and_step", fail(error)),
    "evaluation": lambda m, error: m.setattr(Run, "evaluate", fail(error)),
}


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["device", "process", "Python"])
@pytest.mark.parametrize("place", PLACES)
def test_the_end_of_memory_is_one_line_wherever_it_comes(make_trainer, monkeypatch, place, error):
    PLACES[place](monkeypatch, error)
    with pytest.raises(UserError, match=r"^out of memory.*: set .* or shorten data\.sequence_length \(") as found:
        make_trainer("run", algo="mtp-baseline", steps=1).train()
    assert "\n" not in str(found.value)
    assert "PYTORCH_ALLOC_CONF" not in str(found.value)


def test_another_error_stays_what_it_is(make_trainer, monkeypatch):
    monkeypatch.setattr(Step, "loss", fail(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        make_trainer("run", algo="mtp-baseline", steps=1).train()
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    for words in ("CUDA error: out of memory", "Cuda failure 2 'out of memory'", "CUBLAS_STATUS_ALLOC_FAILED when"):
        assert is_out_of_memory(RuntimeError(words))


def test_only_what_is_not_in_use_is_advised(make_settings):
    settings = make_settings()
    model = settings.model.model_copy(update={"gradient_checkpointing": True})
    checkpointed = settings.model_copy(update={"model": model})
    config = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}}
    first, second, third, last = ways_out(settings, config, world=2)
    assert first.startswith("set train_micro_batch_size_per_gpu to 1 and gradient_accumulation_steps to 6 in ")
    assert second == "set model.gradient_checkpointing to true"
    assert third == "take a higher ZeRO stage than 1, such as ds_configs/zero3.json"
    assert last == f"shorten data.sequence_length ({settings.data.sequence_length})"
    smallest = config | {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    assert ways_out(checkpointed, smallest, world=2) == [last]
    alone = config | {"zero_optimization": {"stage": 0}}
    assert ways_out(checkpointed, alone, world=1) == [first, last]


@pytest.mark.parametrize("rows", [1, 4])
def test_without_training_fewer_or_shorter_rows_are_advised(make_settings, rows):
    settings = make_settings()
    with pytest.raises(UserError) as found, explain_out_of_memory_without_training(settings, rows, "the reference"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    line = str(found.value)
    assert line.startswith("out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)")
    assert f"the reference and {rows} rows do not fit" in line
    assert ("train_micro_batch_size_per_gpu (4)" in line) == (rows > 1)
    assert f"shorten data.sequence_length ({settings.data.sequence_length})" in line
    with pytest.raises(RuntimeError, match="a bug"), explain_out_of_memory_without_training(settings, rows, "x"):
        raise RuntimeError("a bug")
