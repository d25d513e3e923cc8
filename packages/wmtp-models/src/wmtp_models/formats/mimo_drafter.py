"""One sequential module as a folder of its own, in MiMo's layout: a drafter beside a trunk that is served as it is.

vLLM and SGLang apply the module again at every depth. Its layer is Qwen2's, so biases that a trunk lacks are written as
zeros, and it reads the hidden state before the embedding.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from wmtp_core import UserError
from wmtp_models.formats.modules import QKV_BIAS, SIZES, one_module, sglang_options
from wmtp_models.formats.roundtrip import head_logits, probe, require_close, require_same_weights
from wmtp_models.heads.sequential import swap_inputs
from wmtp_models.policy import MtpForCausalLM

_PREFIX = "model.mtp_layers.0."
_NAMES = {
    "enorm.weight": "token_layernorm.weight",
    "hnorm.weight": "hidden_layernorm.weight",
    "eh_proj.weight": "input_proj.weight",
    "post_norm.weight": "final_layernorm.weight",
}
_OVERRIDE = "--hf-overrides '{\"num_nextn_predict_layers\": 1}'"


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format leaves out: the module stands beside a model that is loaded from elsewhere."""
    trunk = "the trunk and head 0 (--format hf is for these)"
    return [trunk] if policy.value_head is None else [trunk, "the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    drafts = policy.config.horizon - 1
    return {
        "vLLM 0.32 and 0.33 (TRUNK is the plain model, such as --format hf writes)": (
            f"vllm serve TRUNK {_OVERRIDE} --speculative-config "
            f'\'{{"method": "mtp", "model": "FOLDER", "num_speculative_tokens": {drafts}}}\''
        ),
        "SGLang 0.5.23 (read in its source, not run)": (
            "python -m sglang.launch_server --model-path TRUNK --speculative-draft-model-path FOLDER "
            + sglang_options(drafts)
        ),
    }


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write the module.

    Raises:
        UserError: the layout cannot hold it.
    """
    save_file(_weights(policy), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(policy), indent=2) + "\n")


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Read the module back, run it as transformers runs a Qwen2 layer, and compare head 1's logits.

    Raises:
        UserError: something is not as it was.
    """
    written = load_file(folder / "model.safetensors")
    require_same_weights(_weights(policy), written, folder)
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    module = {names.get(name, name): tensor for name, tensor in _without(_PREFIX, written).items()}
    config = json.loads((folder / "config.json").read_text())
    decoder = Qwen2Model(Qwen2Config(**{**config, "num_hidden_layers": 1, "layer_types": None})).to(policy.dtype).eval()
    norms: dict[str, Any] = {name: module.pop(f"{name}.weight") for name in ("enorm", "hnorm", "eh_proj", "post_norm")}
    decoder.layers[0].load_state_dict(module)
    decoder.norm.weight.copy_(norms["post_norm"])
    tokens = probe(policy)
    hidden = policy.causal_lm.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]  # [2, 7, D]
    embedded = policy.get_input_embeddings()(tokens[:, 1:])
    both = torch.cat([_rms_norm(hidden, norms["hnorm"], config), _rms_norm(embedded, norms["enorm"], config)], dim=-1)
    states = decoder(inputs_embeds=both @ norms["eh_proj"].T, use_cache=False).last_hidden_state
    found, expected = policy.trunk.unembedding(states).float(), head_logits(policy)[:, :-1, 1]
    eps = torch.finfo(policy.dtype).eps
    difference = require_close(expected, found, eps, f"the logits of {folder}")
    return f"{len(written)} weights are equal to the bit, and head 1's logits by a Qwen2 layer to {difference:.1g}"


def _weights(policy: MtpForCausalLM) -> dict[str, Tensor]:
    module = one_module(policy, "mimo-drafter", set(), QKV_BIAS)
    trunk = policy.config.trunk
    if getattr(trunk, "head_dim", None) not in (None, trunk.hidden_size // trunk.num_attention_heads):
        raise UserError("mimo-drafter holds heads of hidden_size / num_attention_heads dimensions: export to generic")
    if "sliding_attention" in (getattr(trunk, "layer_types", None) or ()):
        raise UserError("mimo-drafter holds full attention, and some of the trunk's is sliding: export to generic")
    for name in sorted(QKV_BIAS - module.keys()):
        module[name] = torch.zeros_like(module[name.replace("bias", "weight")][:, 0])
    module["eh_proj.weight"] = swap_inputs(module["eh_proj.weight"])
    return {_PREFIX + _NAMES.get(name, name): tensor.contiguous() for name, tensor in module.items()}


def _config(policy: MtpForCausalLM) -> dict[str, Any]:
    trunk = policy.config.trunk.to_dict()
    return {
        "architectures": ["MiMoForCausalLM"],
        "model_type": "qwen2",
        "num_nextn_predict_layers": 1,
        "dtype": str(policy.dtype).removeprefix("torch."),
        **{name: trunk[name] for name in (*SIZES, "rope_parameters") if name in trunk},
    }


def _without(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _rms_norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), weight.shape, eps=config["rms_norm_eps"]).to(x.dtype) * weight
