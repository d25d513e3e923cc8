"""What DeepSpeed's JSON may ask for beside the stage: hierarchical partitions, and autocast. Same tokens, any split."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

ROWS, STEPS = 8, 4
SHARDED = {"stage": 3, "stage3_param_persistence_threshold": 0}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
CONFIGS: dict[str, tuple[int, dict[str, Any]]] = {  # processes, and the JSON
    "sharded": (4, {"zero_optimization": SHARDED}),
    "hierarchical": (4, {"zero_optimization": {**SHARDED, "zero_hpz_partition_size": 2}}),
    "hierarchical-on-2": (2, {"zero_optimization": {**SHARDED, "zero_hpz_partition_size": 2}}),
    "float32": (1, {"zero_optimization": {"stage": 2}}),
    "autocast-on-1": (1, {"zero_optimization": {"stage": 2}, **AUTOCAST}),
    "autocast-on-2": (2, {"zero_optimization": {"stage": 2}, **AUTOCAST}),
    "autocast-sharded": (2, {"zero_optimization": SHARDED, **AUTOCAST}),
}
Runs = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def runs(
    settings_under: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, train_runs: Any
) -> Runs:
    """Of each configuration a run in one go, `NAME`, and one in two halves, `NAME-resumed`; see split_runs.py."""
    folder = tmp_path_factory.mktemp("zero_plus_plus")
    planned: dict[int, dict[str, Any]] = {}
    for name, (world, content) in CONFIGS.items():
        config = folder / f"{name}.json"
        config.write_text(json.dumps({"train_batch_size": ROWS, "gradient_accumulation_steps": 2, **content}))
        settings = settings_under(config)
        settings |= {"selection": {"scope": "sequence"}, "optimizer": {"schedule": "constant", "learning_rate": 0.003}}
        of_world = planned.setdefault(world, {})
        of_world[name] = {**settings, "steps": STEPS, "output_dir": str(folder / f"{name}-whole")}
        halves = {**settings, "output_dir": str(folder / f"{name}-halves")}
        of_world[f"{name}-half"] = {**halves, "steps": STEPS // 2}
        of_world[f"{name}-resumed"] = {**halves, "steps": STEPS, "resume": True}
    train_runs(folder, planned)
    return lambda name: torch.load(folder / f"{name}.pt")


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest distance of a tensor of weights, in its norm."""
    return max(float((found["weights"][name] - w).norm() / w.norm()) for name, w in expected["weights"].items())


def test_hierarchical_partitions_change_nothing(runs: Runs) -> None:
    sharded, hierarchical = runs("sharded"), runs("hierarchical")
    assert torch.equal(hierarchical["selected"], sharded["selected"])
    for name, weight in sharded["weights"].items():
        assert torch.equal(hierarchical["weights"][name], weight), name
    on_2 = runs("hierarchical-on-2")
    assert torch.equal(on_2["selected"], sharded["selected"])
    assert distance(on_2, sharded) < 1e-5


def test_autocast_is_the_same_on_one_and_on_two_processes_within_bf16(runs: Runs) -> None:
    one, float32 = runs("autocast-on-1"), runs("float32")
    assert {weight.dtype for weight in one["weights"].values()} == {torch.float32}
    rounded = distance(one, float32)
    assert 1e-4 < rounded < 0.05, "it computes in bf16"
    for name in ("autocast-on-2", "autocast-sharded"):
        assert distance(runs(name), one) < 2 * rounded
        for metrics, expected in zip(runs(name)["metrics"], one["metrics"], strict=True):
            assert metrics["train/weighted_loss"] == pytest.approx(expected["train/weighted_loss"], rel=2**-8)
            for head in range(4):
                assert metrics[f"selected_count/head_{head}"] == expected[f"selected_count/head_{head}"]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_resumes_to_the_bit(runs: Runs, name: str) -> None:
    whole, resumed = runs(name), runs(f"{name}-resumed")
    assert len(resumed["metrics"]) == STEPS // 2
    for parameter, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][parameter], weight), parameter
