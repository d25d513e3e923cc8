"""What only a GPU shows. `WMTP_TEST_DEVICE=cpu` runs these tests on a CPU: that shows nothing, but that they are right."""

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
