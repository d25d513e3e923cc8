"""A policy that writes varied nonsense, and its tokenizer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from wmtp_models import MtpForCausalLM, build_policy, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_home: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_home / "tokenizer")


@pytest.fixture(scope="module")
def policy(tiny_llama: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> MtpForCausalLM:
    """Random weights, large enough that its text is no single token; 64 positions."""
    config = {**tiny_llama, "initializer_range": 0.3, "tie_word_embeddings": False}
    return build_policy(config, len(tokenizer), horizon=3).eval()
