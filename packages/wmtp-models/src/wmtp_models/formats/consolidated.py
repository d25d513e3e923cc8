"""The format in which Gloeckle et al. (arXiv 2404.19737) published their models: params.json and consolidated.pth.

It is Llama 2's own with heads. As the models' card and the code beside them have it: of `n_layers` layers the last
`n_future_tokens` are the heads; `layers` holds the trunk and, as its last, head 0, and `extra_heads` heads 1, 2, …,
which read what the last of `layers` reads; `norm` and `output` serve them all. Queries and keys turn neighbouring
dimensions of a head together, where transformers' Llama turns dimension i with i + d/2.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from wmtp_core import UserError
from wmtp_models.config import MtpConfig
from wmtp_models.formats.llama_2 import hf_key_map, permute_rope, policy_config, require_params, to_params_json
from wmtp_models.formats.roundtrip import head_logits, require_equal, require_same_weights
from wmtp_models.heads import ParallelHeads
from wmtp_models.hf_loading import from_pretrained_strict, one_line
from wmtp_models.policy import MtpForCausalLM

PARAMS, WEIGHTS = "params.json", "consolidated.pth"
_DERIVED = "rope.freqs"  # a table of Llama 2's that its other numbers give


def is_folder(source: str | Path) -> bool:
    """Return whether this is a folder of that format.

    A config.json goes before, as Mistral's repositories hold both.
    """
    folder = Path(source)
    return (folder / PARAMS).is_file() and not (folder / "config.json").is_file()


def load(folder: Path, dtype: torch.dtype | None = None) -> MtpForCausalLM:
    """Load the model with all its heads; exact in the dtype that it was saved in, which is the default.

    Raises:
        UserError: a file is missing or unreadable, or the weights are not those that params.json describes.
    """
    params = _read_params(folder / PARAMS)
    try:
        weights: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({one_line(error)}): copy it again") from error
    if not isinstance(weights, dict) or not isinstance(weights.get("tok_embeddings.weight"), Tensor):
        raise UserError(f"{folder / WEIGHTS} lacks tok_embeddings.weight: give a state_dict of the published format")
    weights.pop(_DERIVED, None)
    embedding = weights["tok_embeddings.weight"]
    config = policy_config(params, embedding.shape[0])
    output = weights.get("output.weight")
    if output is not None and output.data_ptr() == embedding.data_ptr():
        weights["output.weight"] = output.clone()  # one matrix in the file, and two in a model that knows no tying
    names = hf_key_map(config)
    state = {
        names.get(name, name): permute_rope(names.get(name, name), tensor, config) for name, tensor in weights.items()
    }
    policy: MtpForCausalLM = from_pretrained_strict(
        MtpForCausalLM, None, folder, PARAMS, config=config, state_dict=state, dtype=dtype or embedding.dtype
    )
    return policy


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return what the format has no place for."""
    trunk = policy.config.trunk
    again = policy_config(to_params_json(policy.config), trunk.vocab_size).trunk
    context, assumed = trunk.max_position_embeddings, again.max_position_embeddings
    generation = policy.causal_lm.generation_config
    parts = {
        "the value head": policy.value_head is not None,
        f"the context length {context} (readers take {assumed})": context != assumed,
        "the settings of generation_config.json": generation != GenerationConfig.from_model_config(again),
    }
    return [part for part, there in parts.items() if there]


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how it is decoded: no server reads it."""
    return {"WMTP": "wmtp generate --model FOLDER --prompt TEXT"}


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write both files; tied embeddings become two equal matrices, since the format knows no tying.

    Raises:
        UserError: the model is not a Llama 2 with a layer for each head.
        OSError: the folder cannot be written.
    """
    config = policy.config
    state = {name: weight for name, weight in policy.state_dict().items() if not name.startswith("value_head.")}
    _require_llama_2(config, state)
    theirs = {ours: name for name, ours in hf_key_map(config).items()}
    weights = {theirs[name]: permute_rope(name, weight, config, back=True) for name, weight in state.items()}
    (folder / PARAMS).write_text(json.dumps(to_params_json(config), indent=2))
    try:
        torch.save(weights, folder / WEIGHTS)
    except RuntimeError as error:  # raised when the disk is full
        raise OSError(one_line(error)) from error


def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Read it back and compare; says what was equal.

    Raises:
        UserError: something is not.
    """
    again = load(folder).eval()
    expected = {name: weight for name, weight in policy.state_dict().items() if not name.startswith("value_head.")}
    require_same_weights(expected, dict(again.state_dict()), folder)
    require_equal(head_logits(policy), head_logits(again), f"the logits of {folder}")
    return f"{len(expected)} weights and the logits of {policy.config.horizon} heads are equal to the bit"


def _read_params(path: Path) -> dict[str, Any]:
    try:
        params = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): copy it again") from error
    if not isinstance(params, dict):
        raise UserError(f"{path} is a {type(params).__name__}, not a dictionary of parameters: copy it again")
    require_params(params, path)
    return params


def _require_llama_2(config: MtpConfig, state: dict[str, Tensor]) -> None:
    trunk = config.trunk
    rope = (getattr(trunk, "rope_parameters", None) or {}).get("rope_type")
    reasons = {
        f"its heads are of the kind {config.head_kind}": config.head_kind != ParallelHeads.kind,
        f"its trunk is a {trunk.model_type}": trunk.model_type != "llama",
        f"its activation is {getattr(trunk, 'hidden_act', None)}": getattr(trunk, "hidden_act", None) != "silu",
        f"its rotary embedding is {rope}": rope != "default",
    }
    if not any(reasons.values()):
        without = sorted(state.keys() - set(hf_key_map(config).values()))
        reasons = {f"it has {', '.join(without[:1])}": bool(without)}
        reasons["its heads are not hidden_size / num_attention_heads wide"] = (
            trunk.head_dim * trunk.num_attention_heads != trunk.hidden_size
        )
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"consolidated holds Llama 2 with a layer for each head, and {reason}: export to wmtp")
