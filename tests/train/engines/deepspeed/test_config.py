import json
from pathlib import Path

import pytest
import torch

from wmtp_core import UserError
from wmtp_train.engines.deepspeed.config import read_deepspeed_config

SHIPPED = sorted((Path(__file__).parents[4] / "ds_configs").glob("*.json"))


@pytest.fixture
def config_file(tmp_path):
    def write(content):
        path = tmp_path / "deepspeed.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_the_shipped_configurations_are_here():
    assert {"zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_accepted(path, world_size):
    config = read_deepspeed_config(path, world_size)
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == micro * accumulation * world_size
    stage = config["zero_optimization"]["stage"]
    if path.stem.startswith("zero"):
        assert str(stage) == path.stem[4]


BATCH_SIZES = [  # total, micro, accumulation, world → total, micro, accumulation
    ((None, None, None, 2), (2, 1, 1)),
    ((16, None, None, 2), (16, 8, 1)),
    ((None, 4, None, 2), (8, 4, 1)),
    ((None, None, 3, 2), (6, 1, 3)),
    ((None, 4, 3, 2), (24, 4, 3)),
    ((24, 4, None, 2), (24, 4, 3)),
    ((24, None, 3, 2), (24, 4, 3)),
    ((24, 4, 3, 2), (24, 4, 3)),
]
NAMES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.mark.parametrize(("given", "completed"), BATCH_SIZES)
def test_missing_batch_sizes_follow_from_the_given_ones(config_file, given, completed):
    content = {name: value for name, value in zip(NAMES, given, strict=False) if value is not None}
    config = read_deepspeed_config(config_file(content), world_size=given[3])
    assert tuple(config[name] for name in NAMES) == completed


@pytest.mark.parametrize(
    ("total", "micro", "accumulation", "world"), [(16, 4, 2, 1), (9, 4, None, 1), (7, None, None, 2), (2, None, 3, 1)]
)
def test_batch_sizes_that_contradict_each_other_are_refused(config_file, total, micro, accumulation, world):
    content = {n: v for n, v in zip(NAMES, (total, micro, accumulation), strict=True) if v is not None}
    with pytest.raises(UserError, match=rf"train_batch_size {total} is not train_micro_batch_size_per_gpu .*fix"):
        read_deepspeed_config(config_file(content), world)


REFUSED = [
    ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation' .*did you mean 'zero_optimization'"),
    ({"optimizer": {"type": "AdamW"}}, "'optimizer' .*in the settings"),
    ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' .*in the settings"),
    ({"comet": {"enabled": True}}, "'comet' .*remove it: metrics go to TensorBoard"),
    (
        {"bf16": {"enabled": True}, "fp16": {"enabled": True}, "zero_optimization": {"stage": 2}},
        "more than one of bf16, fp16",
    ),
    ({"bf16": {"enabled": True}}, "bf16 is wrong at ZeRO stage 0"),
    ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "bf16 is wrong at ZeRO stage 0"),
    ({"bf16": {"enabled": True}, "zero_optimization": {"stage": "0"}}, "bf16 is wrong at ZeRO stage 0"),
    ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: Input should be 0, 1, 2"),
    ({"train_batch_size": 0}, "train_batch_size is 0"),
    ({"train_batch_size": "auto"}, "train_batch_size is 'auto'"),
    ("{", "not JSON"),
    ("[]", ""),
    ({"bf16": True}, "bf16"),
    ({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1}}, "bf16.enabled"),
    ({"torch_autocast": {"enabled": "auto"}}, "torch_autocast.enabled is 'auto'; give true or false"),
    ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "float16 is not for ZeRO stage 0"),
    ({"zero_optimization": 2}, "zero_optimization"),
    ({"zero_optimization": {"stage": 3, "zero_hpz_partion_size": 2}}, "zero_optimization.zero_hpz_partion_size: Extra"),
    ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size: DeepSpeed has no MiCS any more"),
    ({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size is for ZeRO stage 3"),
    ({"zero_optimization": {"stage": 1, "zero_quantized_weights": True}}, "zero_quantized_weights is for ZeRO stage 3"),
    ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 0}}, "is 0, which does not divide 1 processes"),
    ({"torch_autocast": {"enabled": True, "dtipe": "bfloat16"}}, "torch_autocast.dtipe is not used; choose of dtype"),
    ({"torch_autocast": {"enabled": True}}, "torch_autocast.dtype is None; give bfloat16 or float16"),
    ({"torch_autocast": {"enabled": True, "dtype": "float32"}}, "torch_autocast.dtype is 'float32'; give"),
    ({"torch_autocast": {"enabled": True, "dtype": "half"}}, "float16 is not for ZeRO stage 0"),
    (
        {"torch_autocast": {"enabled": True, "dtype": "bf16", "lower_precision_safe_modules": ["torch.nn.Liner"]}},
        "there is no class 'torch.nn.Liner'; give a list of names like torch.nn.Linear",
    ),
    ({"sequence_parallel_size": 2}, "sequence_parallel_size is 2, which does not divide 1 processes"),
    ({"sequence_parallel_size": 0}, "sequence_parallel_size is 0; give a whole number"),
]


@pytest.mark.parametrize(("content", "problem"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_configuration_that_would_train_something_else_is_refused_in_one_line(config_file, content, problem):
    path = config_file(content)
    with pytest.raises(UserError, match=rf"deepspeed_config {path}: .*{problem}"):
        read_deepspeed_config(path, world_size=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("what", ["weights", "nontrainable_weights", "gradients"])
def test_quantized_communication_is_refused_on_a_cpu(config_file, what):
    path = config_file({"zero_optimization": {"stage": 3, f"zero_quantized_{what}": True}})
    with pytest.raises(UserError, match=f"zero_optimization.zero_quantized_{what} needs CUDA kernels; remove it"):
        read_deepspeed_config(path, world_size=1)


def test_quantized_communication_is_accepted_on_a_gpu_unless_it_meets_autocast(config_file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    zero = {"stage": 3, "zero_quantized_weights": True, "zero_quantized_gradients": True}
    assert read_deepspeed_config(config_file({"zero_optimization": zero}), 1)["zero_optimization"] == zero
    both = {"zero_optimization": zero, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    with pytest.raises(UserError, match="zero_quantized_weights does not go with torch_autocast; keep one"):
        read_deepspeed_config(config_file(both), 1)


@pytest.mark.parametrize(("size", "world"), [(2, 4), (4, 4), (8, 4), (1, 3)])
def test_hierarchical_partitions_divide_the_processes_or_hold_them_all(config_file, size, world):
    path = config_file({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": size}})
    assert read_deepspeed_config(path, world)["zero_optimization"]["zero_hpz_partition_size"] == size
    with pytest.raises(UserError, match=r"zero_hpz_partition_size is 2, which does not divide 3 processes; give the"):
        read_deepspeed_config(config_file({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}), 3)


def test_batch_sizes_count_processes_with_rows_of_their_own(config_file):
    content = {"sequence_parallel_size": 2, "train_batch_size": 8, "gradient_accumulation_steps": 2}
    config = read_deepspeed_config(config_file(content), 4)
    assert tuple(config[name] for name in NAMES) == (8, 2, 2)
    with pytest.raises(UserError, match=r"train_batch_size 8 is not .* 1 × .* 2 × 2 processes with rows of their own"):
        read_deepspeed_config(config_file({**content, "train_micro_batch_size_per_gpu": 1}), 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_fp16_is_refused_on_a_cpu(config_file):
    path = config_file({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    with pytest.raises(UserError, match="fp16 does not train on a CPU"):
        read_deepspeed_config(path, world_size=1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_deepspeed_config(tmp_path / "absent.json", world_size=1)


def test_bf16_is_accepted_from_stage_1_on(config_file):
    assert read_deepspeed_config(config_file({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}), 1)["bf16"]
