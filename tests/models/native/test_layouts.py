import pytest

from wmtp_core import UserError
from wmtp_models.native.layouts import LAYOUTS, find_layout, require_layout

NAMES = {
    "deepseek": [
        "model.layers.3.eh_proj.weight",
        "model.layers.3.enorm.weight",
        "model.layers.3.hnorm.weight",
        "model.layers.3.shared_head.norm.weight",
        "model.layers.3.post_attention_layernorm.weight",
    ],
    "qwen": [
        "mtp.fc.weight",
        "mtp.pre_fc_norm_embedding.weight",
        "mtp.pre_fc_norm_hidden.weight",
        "mtp.norm.weight",
        "mtp.layers.0.post_attention_layernorm.weight",
    ],
    "generic": [
        "mtp.layers.0.eh_proj.weight",
        "mtp.layers.0.enorm.weight",
        "mtp.layers.0.hnorm.weight",
        "mtp.layers.0.post_norm.weight",
        "mtp.layers.0.post_attention_layernorm.weight",
    ],
    "mimo": [
        "model.mtp_layers.0.input_proj.weight",
        "model.mtp_layers.0.token_layernorm.weight",
        "model.mtp_layers.0.hidden_layernorm.weight",
        "model.mtp_layers.0.final_layernorm.weight",
        "model.mtp_layers.0.post_attention_layernorm.weight",
    ],
    "mimo_v2": [
        "model.mtp.layers.0.eh_proj.weight",
        "model.mtp.layers.0.enorm.weight",
        "model.mtp.layers.0.hnorm.weight",
        "model.mtp.layers.0.final_layernorm.weight",
        "model.mtp.layers.0.pre_mlp_layernorm.weight",
    ],
    "ernie": [
        "model.mtp_linear_proj.0.weight",
        "model.mtp_emb_norm.0.weight",
        "model.mtp_hidden_norm.0.weight",
        "model.mtp_block.0.post_attention_layernorm.weight",
    ],
}
PARTS = ["eh_proj", "enorm", "hnorm", "post_norm", "block.post_attention_layernorm"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_names_are_found_and_come_back(name: str) -> None:
    layout, names = LAYOUTS[name], NAMES[name]
    assert find_layout(names, 3) == name
    assert layout.count(names, 3) == 1
    parts = [layout.rename(published, 0, 3) for published in names]
    assert parts == [f"{part}.weight" for part in PARTS if part != "post_norm" or layout.post_norm is not None]
    assert [layout.restore(part, 0, 3) for part in parts if part] == names
    assert layout.rename(names[-1], 1, 3) is None


def test_copies_are_no_part_of_the_block() -> None:
    layout = LAYOUTS["deepseek"]
    assert layout.rename("model.layers.4.embed_tokens.weight", 1, 3) == "embedding"
    assert layout.rename("model.layers.4.shared_head.head.weight", 1, 3) == "unembedding"


def test_the_trunks_own_layers_are_no_modules() -> None:
    assert find_layout(["model.layers.2.eh_proj.weight"], 3) is None
    assert LAYOUTS["deepseek"].count([f"model.layers.{layer}.eh_proj.weight" for layer in (3, 4, 6)], 3) == 2


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UserError, match=r"'other': choose one of deepseek, qwen"):
        require_layout("other")
