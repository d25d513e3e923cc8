"""The configurations that a user copies: each trains and resumes on two processes, in the precision it promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from wmtp_core.selection import num_selected
from wmtp_models import build_policy
from wmtp_train.engines.deepspeed.config import read_deepspeed_config
from wmtp_train.engines.deepspeed.engine import ZeroEngine
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.sections import OptimizerSettings

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "ds_configs"
NAMES = ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
BF16 = NAMES[1:]


@pytest.fixture(scope="module")
def runs(
    settings_under: Callable[[Path], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, train_runs: Any
) -> Callable[[str], dict[str, Any]]:
    """Of each configuration two steps in one go, `NAME`, and in two, `NAME-resumed`; see split_runs.py."""
    folder = tmp_path_factory.mktemp("ds_configs")
    planned = {}
    for name in NAMES:
        settings = settings_under(FOLDER / f"{name}.json")
        settings |= {"optimizer": {"schedule": "constant", "learning_rate": 0.01}}
        planned[name] = {**settings, "steps": 2, "output_dir": str(folder / f"{name}-whole")}
        halves = {**settings, "output_dir": str(folder / f"{name}-halves")}
        planned[f"{name}-half"] = {**halves, "steps": 1}
        planned[f"{name}-resumed"] = {**halves, "steps": 2, "resume": True}
    train_runs(folder, {2: planned})
    return lambda name: torch.load(folder / f"{name}.pt")


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps_on_two_processes_and_counts_exactly(
    runs: Callable[[str], dict[str, Any]], name: str
) -> None:
    found, exact = runs(name), runs("zero0")
    for step, (metrics, in_float32) in enumerate(zip(found["metrics"], exact["metrics"], strict=True)):
        rows = slice(16 * step, 16 * step + 16)
        valid, selected = (found[tensor][rows].sum(dim=(0, 1)) for tensor in ("valid", "selected"))
        assert selected.tolist() == [int(valid[0]), *num_selected(valid[1:], 0.6).tolist()]
        for head in range(4):
            assert metrics[f"selected_count/head_{head}"] == selected[head]
            assert metrics[f"reference_ce/head_{head}"] == in_float32[f"reference_ce/head_{head}"]
            assert metrics[f"ce/head_{head}"] == pytest.approx(in_float32[f"ce/head_{head}"], rel=2**-8)
        assert metrics["train/gradient_norm"] == pytest.approx(in_float32["train/gradient_norm"], rel=2**-5)
    assert {weight.dtype for weight in found["weights"].values()} == {torch.bfloat16 if name in BF16 else torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes_to_the_bit(runs: Callable[[str], dict[str, Any]], name: str) -> None:
    whole, resumed = runs(name), runs(f"{name}-resumed")
    assert len(resumed["metrics"]) == 1
    for parameter, weight in whole["weights"].items():
        assert torch.equal(resumed["weights"][parameter], weight), parameter


@pytest.mark.parametrize("name", BF16)
def test_bf16_keeps_losses_sums_of_gradients_and_master_weights_in_float32(
    processes: Mesh, tiny_llama: dict[str, Any], tmp_path: Path, name: str
) -> None:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    accumulating = {**content, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    (tmp_path / "deepspeed.json").write_text(json.dumps(accumulating))
    policy = build_policy(tiny_llama, 64)
    # A step of this size is lost on a bf16 weight of 0.02, whose neighbours are 6e-5 apart or more.
    optimizer = OptimizerSettings(learning_rate=1e-6, schedule="constant", weight_decay=0)
    config = read_deepspeed_config(tmp_path / "deepspeed.json", 1)
    zero = ZeroEngine(policy, config, optimizer, 1, processes)
    engine = zero._engine
    assert engine.communication_data_type == torch.float32
    weight = policy.trunk.last_layer.mlp.down_proj.weight
    before = safe_get_full_fp32_param(weight).clone()
    draw = torch.Generator().manual_seed(0)
    for _ in range(2):
        output = engine(torch.randint(64, (1, 32), generator=draw))
        assert output.ce.dtype == torch.float32
        engine.backward(output.ce.mean())
        if engine.is_gradient_accumulation_boundary():
            gradient = safe_get_full_grad(weight)
            if zero._norm is not None:  # as `backward_and_step` does, which cannot be looked into
                zero._norm.compute()
        engine.step()
    assert (gradient != gradient.bfloat16()).any(), "the sum of two gradients in bf16 has more digits than bf16"
    after = safe_get_full_fp32_param(weight)
    assert after.dtype == torch.float32
    assert weight.dtype == torch.bfloat16
    assert (after - before).abs().max() == pytest.approx(1e-6, rel=0.01)
