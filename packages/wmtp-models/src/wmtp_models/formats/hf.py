"""A plain Hugging Face model: trunk and head 0."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from wmtp_models.formats.roundtrip import probe, require_equal, require_same_generation, require_same_weights
from wmtp_models.native.source import MODULE_COUNTS
from wmtp_models.policy import MtpForCausalLM


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what a plain model has no place for: it predicts one token."""
    heads = [f"heads 1 to {policy.config.horizon - 1}"] if policy.config.horizon > 1 else []
    if policy.config.native is not None:
        heads.append("the modules that its source shipped, which the format native keeps")
    return heads if policy.value_head is None else [*heads, "the value head"]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    return {
        "transformers": "AutoModelForCausalLM.from_pretrained(FOLDER)",
        "vLLM, where it knows the architecture": "vllm serve FOLDER",
    }


def save(policy: MtpForCausalLM, folder: Path, extra: dict[str, Tensor] | None = None, stacked: bool = False) -> None:
    """Write what any program that knows the trunk's architecture loads.

    Args:
        policy: the model.
        folder: an empty one.
        extra: weights to write beside the plain model's; they are un-stacked and named like these.
        stacked: experts stay in one tensor for each layer, and all names as transformers has them.
    """
    write(policy.unwrap(), folder, extra, stacked)
    if extra is None:
        _announce_no_modules(folder / "config.json")


def write(plain: PreTrainedModel, folder: Path, extra: dict[str, Tensor] | None = None, stacked: bool = False) -> None:
    """Write a plain model as `save` does the policy's."""
    # By itself, since save_pretrained refuses settings that contradict each other, as some published ones do.
    generation, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        state = plain.state_dict() | (extra or {})
        plain.save_pretrained(folder, state_dict=state, save_original_format=not stacked)
    finally:
        plain.generation_config = generation
    generation.to_json_file(folder / "generation_config.json")


def _announce_no_modules(path: Path) -> None:
    """Tell servers that size a model by its config.json that there are no modules."""
    config = json.loads(path.read_text())
    if said := {name: 0 for name in MODULE_COUNTS if config.get(name)}:
        path.write_text(json.dumps(config | said, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Load it as transformers does without us, and compare; says what was equal.

    Raises:
        UserError: something is not.
    """
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    expected = policy.unwrap().state_dict()
    require_same_weights(dict(expected), dict(plain.state_dict()), folder)
    require_same_generation(policy.causal_lm.generation_config, plain.generation_config, folder)
    tokens = probe(policy)
    logits = policy.causal_lm(input_ids=tokens, use_cache=False).logits
    require_equal(logits, plain(input_ids=tokens, use_cache=False).logits, f"the logits of {folder}")
    return f"{len(expected)} weights and the logits of head 0 are equal to the bit in {type(plain).__name__}"
