"""Tiny decoders of every supported family, with weights large enough that a leak between documents would show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shipping_sources import SHIPPING, write_source
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 64
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
GATED: dict[str, Any] = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 8},
    "mistral": {**GATED, "sliding_window": 6},
    "gpt2": COMMON,
    "gpt_neox": {**COMMON, "intermediate_size": 48},
}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every supported family in turn."""
    return str(request.param)


@pytest.fixture
def make_causal_lm() -> Callable[..., PreTrainedModel]:
    """A plain causal LM of a family in evaluation mode, the same one for the same arguments."""

    def make(family: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**FAMILIES.get(family, GATED), **overrides})
        return AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture
def input_ids() -> torch.Tensor:
    """int64 `[2, 12]`."""
    return torch.randint(VOCAB_SIZE, (2, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level tokenizer trained on one line."""

    def make(text: str = "a tiny tokenizer for tiny tests", prefix_space: bool = False) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<eos>"], show_progress=False)
        backend.train_from_iterator([text], trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")

    return make


@pytest.fixture
def ship(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """Write a source of a family that ships modules: its folder, and its tensors by the names in its file."""

    def write(name: str = "mellum dense") -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path / "source"
        return folder, write_source(SHIPPING[name], name.split()[0], folder)

    return write
