"""Training goes on with the modules that a source shipped: what learns, and what comes out under its names."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shipping_sources import SHIPPING, write_source

from wmtp_models import load_tokenizer, load_wmtp
from wmtp_models.formats import native


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "heads", "lora"])
@pytest.mark.parametrize("family", ["mellum dense", "glm4_moe"])
def test_a_step_teaches_what_was_shipped(make_trainer, tmp_path, tiny_home, family: str, train: str) -> None:
    source = tmp_path / "source"
    vocabulary = len(load_tokenizer(tiny_home / "tokenizer"))
    before = write_source(SHIPPING[family], family.split()[0], source, vocab_size=vocabulary)
    count = SHIPPING[family].modules
    model: dict[str, Any] = {"source": str(source), "config": None, "horizon": count + 1, "head_kind": "sequential"}
    model |= {"shared_module": count == 1, "train": train}
    make_trainer(algo="mtp-baseline", steps=1, model=model).train()
    policy = load_wmtp(tmp_path / "run" / "model").eval()
    native.save(policy, tmp_path / "after")
    native.check(policy, tmp_path / "after")
    after = load_file(tmp_path / "after" / "model.safetensors")
    assert after.keys() == before.keys()
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    shipped = {name for name in before if name.startswith(("mtp.", "model.layers.3.", "model.layers.4."))}
    copies = {name for name in shipped if name.endswith(("embed_tokens.weight", "shared_head.head.weight"))}
    still = {name for name in before if name.endswith("e_score_correction_bias")}  # a balance, with no gradient
    learned = {
        "all": before.keys() - still,
        "heads": shipped - copies - still,
        "lora": (shipped - copies - still)
        | {name for name in before.keys() - shipped if name.endswith("_proj.weight") and ".experts." not in name},
    }
    assert moved == learned[train]
