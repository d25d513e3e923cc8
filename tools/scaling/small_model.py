"""The model of the small runs, and what is calculated of it."""

from scaling.engines import read_engines
from scaling.model_size import ModelSize, measure_model
from scaling.plan import Plan
from wmtp_models import MtpForCausalLM, build_policy

RANKS, ACCUMULATION, HORIZON, ROWS, LENGTH = 2, 2, 4, 2, 32
K_PERCENT = 0.6
VOCABULARY = 256
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
}


def small_model(layers: int = 3, tied: bool = False) -> tuple[MtpForCausalLM, ModelSize]:
    """With weights, and measured without."""
    config = LLAMA | {"num_hidden_layers": layers, "tie_word_embeddings": tied}
    policy = build_policy(config, VOCABULARY, HORIZON)
    return policy, measure_model(config | {"vocab_size": VOCABULARY}, HORIZON)


def small_plan(policy: ModelSize) -> Plan:
    """Two processes train it."""
    return Plan(policy, policy, RANKS, RANKS, ROWS, ACCUMULATION, LENGTH, K_PERCENT, 2, 1e6, 1e12, 0.5, read_engines())
