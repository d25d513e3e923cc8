from pathlib import Path

import pytest
import yaml
from scaling.model_size import measure_model

from wmtp_core import UserError
from wmtp_models import build_policy

ROOT = Path(__file__).parents[3]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(("name", "published"), [("scale_1b", 1_100_048_384), ("scale_7b", 6_738_415_616)])
def test_a_plain_model_has_the_published_number_of_parameters(name: str, published: int) -> None:
    settings = yaml.safe_load((ROOT / f"launch/configs/{name}.yaml").read_text())
    assert measure_model(settings["model"]["config"], horizon=1).parameters == published


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_the_parts_are_those_of_a_policy_with_weights(family: str, tied: bool) -> None:
    config = LLAMA | {"model_type": family, "tie_word_embeddings": tied}
    size = measure_model(config, horizon=4)
    named = dict(build_policy(config, 96, 4).named_parameters())
    heads = sum(weight.numel() for name, weight in named.items() if ".heads." in name)
    assert size.parameters == sum(weight.numel() for weight in named.values())
    assert (size.heads, size.embedding, size.unembedding) == (heads, 96 * 32, 0 if tied else 96 * 32)
    assert size.trunk == size.parameters - heads - size.embedding - size.unembedding


def test_keys_and_values_are_not_among_what_skips_rows() -> None:
    size = measure_model(LLAMA, horizon=2)
    queries, keys, mlp = 32 * 32, 32 * 16, 3 * 32 * 48
    assert size.layer_matrices == 2 * queries + 2 * keys + mlp
    assert size.row_sparse_matrices == 2 * queries + mlp
    assert size.attention_width == 32


def test_a_value_that_the_architecture_refuses_is_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.config: no model can be built so") as refused:
        measure_model(LLAMA | {"hidden_size": "wide"}, horizon=1)
    assert "\n" not in str(refused.value)
