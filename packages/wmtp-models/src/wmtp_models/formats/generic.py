"""A plain Hugging Face model with sequential modules beside it, under the names that transformers gives them.

`generate(use_mtp=True)` of transformers drafts with them, and so does vLLM by its transformers backend. Both build
every depth as a module of its own, `mtp.layers.{k}`, so a shared one is written once for each depth. What tells them to
look for modules in a model whose class knows of none is a file of two classes, `CODE`, which needs `trust_remote_code`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models.formats import hf
from wmtp_models.formats.modules import module_weights, sequential_heads
from wmtp_models.formats.roundtrip import head_logits, probe, require_close, require_same_weights
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.hf_loading import one_line
from wmtp_models.loading import load_policy
from wmtp_models.policy import MtpForCausalLM

CODE = "modeling_mtp_trunk.py"
_IGNORED = r"^mtp\."
_CODE = '''"""The same model, whose checkpoint also holds multi-token modules."""

from transformers import {base}, {causal_lm}


class MtpTrunkModel({base}):
    _keys_to_ignore_on_load_unexpected = [r"{ignored}"]


class MtpTrunkForCausalLM({causal_lm}):
    _keys_to_ignore_on_load_unexpected = [r"{ignored}"]
'''
_COMMANDS = {
    "transformers 5.23": "model.generate(..., use_mtp=True)  # from_pretrained(FOLDER, trust_remote_code=True)",
    "vLLM 0.33": (
        "vllm serve FOLDER --model-impl transformers --trust-remote-code "
        '--speculative-config \'{{"method": "mtp", "num_speculative_tokens": {depths}}}\''
    ),
}


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format has no place for."""
    return [] if policy.value_head is None else ["the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    return {server: command.format(depths=policy.config.horizon - 1) for server, command in _COMMANDS.items()}


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write the plain model, and beside its weights those of the modules.

    Raises:
        UserError: heads of another kind, or a trunk whose norms are not RMSNorm, or that is less deep than they are.
    """
    heads = sequential_heads(policy, "generic")
    if policy.config.head_block != "trunk":
        raise UserError("generic holds layers like the trunk's, and these are Qwen2's: export to mimo-drafter or wmtp")
    if len(heads) > len(policy.trunk.layers):  # transformers renames layers.{k} by k alone
        raise UserError(
            f"generic needs a trunk of at least as many layers as there are later heads, and it has "
            f"{len(policy.trunk.layers)} for {len(heads)}: export to wmtp"
        )
    trunk = policy.config.text
    if getattr(trunk, "sliding_window", None) and not getattr(trunk, "layer_types", None):
        raise UserError("transformers gives such modules full attention, and the trunk's is sliding: export to wmtp")
    plain = policy.unwrap()
    hf.save(policy, folder, extra=_module_weights(heads))
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_mtp_layers": len(heads), "num_nextn_predict_layers": len(heads)}
    if layer_types := config.get("layer_types"):
        config["mtp_layer_types"] = [layer_types[-1]] * len(heads)
    module = CODE.removesuffix(".py")
    config["auto_map"] = {
        "AutoModel": f"{module}.MtpTrunkModel",
        "AutoModelForCausalLM": f"{module}.MtpTrunkForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    names = {"base": type(plain.base_model).__name__, "causal_lm": type(plain).__name__}
    (folder / CODE).write_text(_CODE.format(ignored=_IGNORED, **names))


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Read it back, and decode with and without the modules as transformers does; says what was equal.

    Raises:
        UserError: something is not.
    """
    depths = len(policy.heads)
    loaded = load_policy(folder, depths + 1, False, policy.dtype, SequentialHeads.kind, depths == 1).eval()
    eps = torch.finfo(policy.dtype).eps
    difference = require_close(head_logits(policy), head_logits(loaded), eps, f"the logits of {folder}")
    known: Any = type("MtpTrunk", (type(policy.causal_lm),), {"_keys_to_ignore_on_load_unexpected": [_IGNORED]})
    plain: PreTrainedModel = known.from_pretrained(folder, dtype="auto").eval()
    require_same_weights(dict(policy.unwrap().state_dict()), dict(plain.state_dict()), folder)
    tokens = probe(policy)[:1]
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0}
    text = plain.generate(tokens, attention_mask=torch.ones_like(tokens), **how)
    try:
        drafted = plain.generate(tokens, attention_mask=torch.ones_like(tokens), use_mtp=True, **how)
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"transformers cannot draft with such modules ({reason}): export to wmtp") from error
    if not torch.equal(text, drafted):
        raise UserError(f"{folder}: transformers decodes another text with the modules than without: nothing was kept")
    return (
        f"the trunk's weights are equal to the bit and the logits of {depths + 1} heads to {difference:.1g}, and "
        "transformers' generate(use_mtp=True) gives the text that it gives without"
    )


def _module_weights(heads: SequentialHeads) -> dict[str, Tensor]:
    return {
        f"mtp.layers.{depth - 1}.{name}": tensor.clone()  # safetensors writes no tensor twice
        for depth in range(1, len(heads) + 1)
        for name, tensor in module_weights(heads, depth).items()
    }
