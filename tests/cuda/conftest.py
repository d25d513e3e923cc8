"""What only a GPU shows. `WMTP_TEST_DEVICE=cpu` runs the same on a CPU, to see that the tests are right."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
NAME = os.environ.get("WMTP_TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """The device that is tested."""
    if NAME == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here; WMTP_TEST_DEVICE=cpu runs the test on a CPU")
    # Whatever is compiled would be compiled for a CPU there, for minutes and to no end.
    with torch.compiler.set_stance("default" if NAME == "cuda" else "force_eager"):
        yield torch.device(NAME)


@pytest.fixture
def relative_error() -> Callable[[Any, Any], float]:
    """The norm of a difference of two tensors, or of two lists of them as one vector, over the norm of the second."""

    def flat(tensors: Any) -> torch.Tensor:
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        return torch.cat([tensor.detach().double().cpu().flatten() for tensor in tensors])

    def error(found: Any, expected: Any) -> float:
        found, expected = flat(found), flat(expected)
        assert expected.norm() > 0
        return float((found - expected).norm() / expected.norm())

    return error


@pytest.fixture(scope="session")
def wide_llama() -> dict[str, Any]:
    """`model.config` of a Llama whose heads are wide enough for every attention kernel."""
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }


@pytest.fixture
def losses_of(
    make_settings: Callable[..., Any], write_deepspeed: Callable[..., Path], processes: Any, wide_llama: dict[str, Any]
) -> Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]:
    """Losses, and gradients by name, of the policy of a run with these model settings, on packed rows of its data.

    The policy computes on the device and in the dtype that are given, with SDPA if nothing else is. What cannot be had
    here is skipped.
    """
    from wmtp_core import GradientPlan, UniformWeighting, UserError, WeightingInputs, mtp_targets, weighted_mtp_loss
    from wmtp_train.algorithms import MtpBaselineTrainer
    from wmtp_train.run import Run
    from wmtp_train.settings.sections import ModelSettings

    plain = {"config": wide_llama} | ({"attention": "sdpa"} if "attention" in ModelSettings.model_fields else {})

    def losses(device: torch.device, dtype: torch.dtype, **model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        config = write_deepspeed(f"{dtype}.json", bf16={"enabled": dtype == torch.bfloat16})
        changes = {"model": {**plain, **model}, "data": {"evaluate": {}}, "deepspeed_config": config}
        try:
            run = Run.open(make_settings(algo="mtp-baseline", **changes), MtpBaselineTrainer.algorithm, processes)
        except UserError as reason:
            pytest.skip(str(reason))
        batch = next(run.train.training_batches(processes, 4, 0, {})).to(device)
        assert len(batch.document_ids.unique()) > 1
        policy = run.policy.to(device, dtype).train()
        valid = mtp_targets(batch.labels, 3, document_ids=batch.document_ids)[1]
        counts = valid.sum(dim=(0, 1))
        plan = UniformWeighting().plan(WeightingInputs(valid=valid, step=0, row_ids=batch.row_ids))
        names = ("input_ids", "labels", "position_ids", "document_ids", "attention_mask", "bounds")
        inputs = {name: getattr(batch, name) for name in names if hasattr(batch, name)}
        output = policy(**inputs, plan=GradientPlan(plan, 1 / counts))
        weighted_mtp_loss(output.ce, valid.float(), counts).backward()
        gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        return output.ce, [gradients[name] for name in sorted(gradients)]

    return losses
