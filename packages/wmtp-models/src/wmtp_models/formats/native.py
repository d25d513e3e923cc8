"""A model as its source published it: the trunk and the sequential modules under the source's own tensor names."""

from pathlib import Path
from typing import Any

from torch import Tensor

from wmtp_core import UserError
from wmtp_models.formats import hf
from wmtp_models.formats.modules import sglang_mtp, vllm_mtp
from wmtp_models.formats.roundtrip import head_logits, require_equal, require_same_weights
from wmtp_models.heads.sequential import SequentialHeads, swap_inputs
from wmtp_models.loading import load_policy
from wmtp_models.native.layouts import require_layout
from wmtp_models.policy import MtpForCausalLM


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what a published model has no place for."""
    parts = {
        "the value head": policy.value_head is not None,
        "the parts of its source that are not for text": (policy.config.native or {}).get("text_only"),
    }
    return [part for part, there in parts.items() if there]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how servers, by name and version, are started with the folder."""
    drafts = policy.config.horizon - 1
    return {
        "transformers 5.23, where it knows the modules": "model.generate(..., use_mtp=True)",
        "vLLM 0.32 and 0.33, where they know the family": vllm_mtp(drafts),
        "SGLang 0.5.23, where it knows the family (read in its source, not run)": sglang_mtp(drafts),
    }


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write what any program that knows the source loads, and drafts with its modules.

    Raises:
        UserError: the model's source shipped no modules.
    """
    modules = _module_weights(policy)
    hf.save(policy, folder, modules, stacked=policy.config.native["stacked"])


def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Load it as transformers does without us, and again with its modules, and compare; says what was equal.

    Raises:
        UserError: something is not.
    """
    hf.check(policy, folder)
    config = policy.config
    kind, shared, packing = SequentialHeads.kind, config.shared_module, config.isolates_documents
    again = load_policy(folder, config.horizon, False, policy.dtype, kind, shared, packing).eval()
    expected = {name: weight for name, weight in policy.state_dict().items() if not name.startswith("value_head.")}
    require_same_weights(expected, dict(again.state_dict()), folder)
    require_equal(head_logits(policy), head_logits(again), f"the logits of {folder}")
    return f"{len(expected)} weights and the logits of {config.horizon} heads are equal to the bit"


def _module_weights(policy: MtpForCausalLM) -> dict[str, Tensor]:
    """Return the weights of the modules by the source's names, experts stacked."""
    native = policy.config.native
    if native is None:
        raise UserError(
            "native writes back the modules that a source shipped, and this model's are new: export to wmtp"
        )
    layout, layers = require_layout(native["layout"]), len(policy.trunk.layers)
    trunk: dict[str, Any] = {
        "embedding": policy.get_input_embeddings().weight,
        "unembedding": policy.trunk.weight,
    }
    weights = {}
    heads: Any = policy.heads
    for depth, module in enumerate(heads.layers):
        for name, weight in module.state_dict().items():
            if name == "eh_proj.weight" and layout.hidden_first:
                weight = swap_inputs(weight)
            weights[layout.restore(name, depth, layers)] = weight
        for part, name in layout.copy_names(depth, layers):
            if part in native["copies"]:
                weights[name] = trunk[part].detach().clone()  # for transformers drops what shares its memory
    return weights
