"""What the recipes cost on H100s, by formula: the numbers of docs/recipes.md, which test_recipes.py holds there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from wmtp_train.engines.deepspeed.config import read_deepspeed_config

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "launch" / "configs" / "recipes"
BUCKET, CHUNK = 5 * 10**8, 80 * 10**9 // 64  # elements, DeepSpeed's default; bytes, of logits at a time
PEAK, SHARE = 989e12, 0.3  # dense bf16 of an H100 a second, and the part of it that is assumed

_ROPE3 = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ROPE3 |= {"original_max_position_embeddings": 8192}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
_LLAMA |= {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
_QWEN3 |= {"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
_LLAMA_1B: dict[str, Any] = {
    **_LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {**_ROPE3, "factor": 32.0},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "modules_llama3.2_1b": _LLAMA_1B,
    "modules_llama3.1_8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_parameters": {**_ROPE3, "factor": 8.0},
    },
    "modules_qwen3_0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "modules_qwen3_8b": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "native_mimo_7b": {
        "model_type": "qwen2",
        "vocab_size": 151680,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 640000.0},
        "tie_word_embeddings": False,
    },
    "sft_llama3.2_1b": _LLAMA_1B,
}
"""The architecture that each recipe is for."""


def config_of(architecture: dict[str, Any], **changes: Any) -> PreTrainedConfig:
    """Return the configuration of an architecture."""
    whole = {**architecture, **changes}
    return AutoConfig.for_model(whole.pop("model_type"), **whole)


@dataclass(frozen=True)
class Costs:
    """Of one recipe: gigabytes on each GPU, and hours.

    Attributes:
        weights: in bf16.
        optimizer: sums of gradients, master weights, two moments, what passes in a step; and DeepSpeed's buckets.
        activations: of the trunk and of the module at every depth, and what the loss holds.
        gigaflop: model operations a token.
        hours: of all steps.
    """

    weights: float
    optimizer: float
    activations: float
    gigaflop: float
    hours: float


def costs(name: str) -> Costs:
    """Calculate what a recipe costs, by the formulas of docs/recipes.md and the names of docs/scale.md."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    gpus = 8 if recipe["deepspeed_config"].endswith("zero2.json") else 1
    engine = read_deepspeed_config(ROOT / recipe["deepspeed_config"], gpus)
    config: Any = config_of(PUBLISHED[name])
    length = recipe["data"]["sequence_length"]
    trunk, module = parameters(config, 1)
    learns_all = recipe["model"]["train"] == "all"
    learning = trunk + module if learns_all else module
    n, e = engine["train_micro_batch_size_per_gpu"] * length, 2
    d, w, i = config.hidden_size, config.num_attention_heads * head_dim(config), config.intermediate_size
    depths, layers = recipe["model"]["horizon"] - 1, config.num_hidden_layers
    norm = 4 * d + 2 * e * d + 4
    qk_norms = 2 * (4 + 2 * e) * w if config.model_type == "qwen3" else 0
    layer = n * (2 * norm + 4 * e * w + qk_norms + 4 * config.num_attention_heads + 4 * e * i)
    one = layer + n * (3 * norm + 2 * e * d)
    passing = n * e * (4 * d + 3 * i)  # a layer of the trunk that keeps nothing
    checkpointed = layers * n * e * d + depths * 2 * n * e * d + one
    kept = checkpointed if recipe["model"].get("gradient_checkpointing") else passing + depths * one
    loss = 2 * e * n * (depths + 1) * d + 4 * CHUNK + (4 + e) * config.vocab_size * d * learns_all
    flop = flop_per_token(config, depths, length, learns_all)
    tokens = recipe["steps"] * engine["train_batch_size"] * length
    return Costs(
        weights=e * (trunk + module) / 1e9,
        optimizer=(20 * learning / gpus + 8 * min(learning, BUCKET)) / 1e9,
        activations=(kept + loss) / 1e9,
        gigaflop=flop / 1e9,
        hours=tokens * flop / (gpus * PEAK * SHARE) / 3600,
    )


def parameters(config: Any, dimensions: int) -> tuple[int, int]:
    """Return how many parameters of at least so many dimensions the trunk has, and one module."""
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
    trunk, layer = (
        sum(parameter.numel() for parameter in part.parameters() if parameter.ndim >= dimensions)
        for part in (causal_lm, causal_lm.model.layers[-1])
    )
    return trunk, layer + 2 * config.hidden_size**2 + (3 * config.hidden_size if dimensions == 1 else 0)


def head_dim(config: Any) -> int:
    """Return the dimensions of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def flop_per_token(config: Any, depths: int, length: int, learns_all: bool) -> float:
    """Return a token's model operations, as `wmtp_models.flop` counts them."""
    trunk, module = parameters(config, 2)
    d, v, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    attention = 4 * length * config.num_attention_heads * head_dim(config)
    body = trunk - v * d * (1 if config.tie_word_embeddings else 2)
    below = 3 if learns_all else 1
    unembedding = 2 * v * d * ((3 if learns_all else 2) * depths + below)
    return float(below * (2 * body + layers * attention) + 3 * depths * (2 * module + attention) + unembedding)


def line(name: str) -> str:
    """Return the row of a recipe in the page's table."""
    c = costs(name)
    gigabytes = (c.weights, c.optimizer, c.activations, c.weights + c.optimizer + c.activations)
    numbers = [*(f"{x:.0f}" for x in gigabytes), f"{c.gigaflop:.1f}", f"{c.hours:.1f}"]
    return f"| `{name}.yaml` | {' | '.join(numbers)} |"


if __name__ == "__main__":
    print("\n".join(map(line, PUBLISHED)))
