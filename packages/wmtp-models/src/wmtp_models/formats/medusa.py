"""Heads on the final hidden state, as vLLM (up to 0.32) reads Medusa heads beside a model exported as `hf`.

There head i computes `lm_head_i · block_i(h)` from the model's final hidden state h for the token i + 2 ahead, so it is
our head i + 1; a block is a chain of h + silu(W h + b). Names that it does not expect it drops without a word, and a
config key with both "num" and "heads" in it overwrites num_heads, so this file writes what it reads and nothing else.

* `mlp` heads are such blocks, before the one unembedding: `original_lm_head`, stored as `lm_heads.0.weight`.
* `linear` heads have no block of that form. Each becomes an unembedding of its own, the product of the model's with the
  head's matrix, formed in float32, behind a block of zeros, which is the identity.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear, silu

from wmtp_core import UserError
from wmtp_models.formats.roundtrip import head_logits, probe, require_close, require_same_weights
from wmtp_models.heads.medusa import MedusaHeads
from wmtp_models.policy import MtpForCausalLM

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format leaves out: the heads stand beside a model that is loaded from elsewhere."""
    trunk = "the trunk and head 0 (--format hf is for these)"
    return [trunk] if policy.value_head is None else [trunk, "the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    config = f'{{"method": "medusa", "model": "FOLDER", "num_speculative_tokens": {policy.config.horizon - 1}}}'
    return {"vLLM up to 0.32 (TRUNK is the --format hf)": f"vllm serve TRUNK --speculative-config '{config}'"}


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write config.json and model.safetensors.

    Raises:
        UserError: the heads are of another kind, or there is none beside head 0; or logits are scaled or capped.
    """
    if not isinstance(policy.heads, MedusaHeads) or not len(policy.heads):
        kind = f"its heads are of the kind {policy.config.head_kind}"
        reason = "there is no head but head 0" if policy.config.horizon == 1 else kind
        raise UserError(f"medusa holds heads of the kinds mlp and linear, and {reason}: export to wmtp")
    if not policy.trunk.transform.is_identity:
        raise UserError("medusa holds heads of trunks whose logits are neither scaled nor capped: export to wmtp")
    save_file(_weights(policy), folder / WEIGHTS, metadata={"format": "pt"})
    mlp = policy.config.head_kind == "mlp"
    unembedding = policy.trunk.unembedding
    config = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": unembedding.in_features,
        "vocab_size": unembedding.out_features,
        "truncated_vocab_size": unembedding.out_features,
        "num_heads": len(policy.heads),
        "num_hidden_layers": 1,
        "medusa_fc_bias": mlp,
        "original_lm_head": mlp,
        "torch_dtype": str(policy.dtype).removeprefix("torch."),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2))


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Read the files back, compute the heads' logits from them as vLLM does, and compare; says what was equal.

    Raises:
        UserError: something is not.
    """
    config = json.loads((folder / CONFIG).read_text())
    weights = load_file(folder / WEIGHTS)
    require_same_weights(_weights(policy), weights, folder)
    final = policy.causal_lm.base_model(input_ids=probe(policy), use_cache=False).last_hidden_state  # [2, 8, D]
    logits = []
    for i in range(config["num_heads"]):
        block = f"blocks.{i}.layers.0"
        bias = weights[f"{block}.bias"] if config["medusa_fc_bias"] else None
        hidden = final + silu(linear(final, weights[f"{block}.weight"], bias))
        logits.append(linear(hidden, weights[f"lm_heads.{0 if config['original_lm_head'] else i}.weight"]))
    expected, found = head_logits(policy)[:, :, 1:], torch.stack(logits, dim=2).float()
    difference = require_close(expected, found, torch.finfo(policy.dtype).eps, f"the logits of {folder}")
    return (
        f"{len(weights)} weights are equal to the bit, and the logits of heads 1 to {len(logits)}, computed as vLLM "
        f"does, to {difference:.1g}"
    )


@torch.no_grad()
def _weights(policy: MtpForCausalLM) -> dict[str, Tensor]:
    assert isinstance(policy.heads, MedusaHeads)
    unembedding = policy.trunk.weight.detach()
    weights: dict[str, Tensor] = {}
    for i, head in enumerate(policy.heads.blocks):
        layer: Any = head.layer
        if policy.config.head_kind == "mlp":
            weights |= {f"blocks.{i}.layers.0.{name}": p.detach() for name, p in layer.named_parameters()}
        else:
            weights[f"blocks.{i}.layers.0.weight"] = torch.zeros_like(layer.weight)
            product = unembedding.float() @ layer.weight.float()  # [V, D]
            weights[f"lm_heads.{i}.weight"] = product.to(unembedding.dtype)
    if policy.config.head_kind == "mlp":
        weights["lm_heads.0.weight"] = unembedding
    return weights
