"""Models and tokenizers from folders, names and configurations."""

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from wmtp_core import UserError
from wmtp_models.config import FORMAT, MtpConfig
from wmtp_models.formats import consolidated
from wmtp_models.formats.first import load_first_format
from wmtp_models.heads import ParallelHeads
from wmtp_models.heads.sequential import SequentialHeads
from wmtp_models.hf_loading import load_weights, one_line, read_config, resolve_source
from wmtp_models.native.loading import warn_unused, wrap_with_modules
from wmtp_models.native.source import ShippedModules, find_shipped
from wmtp_models.policy import MtpForCausalLM


def load_policy(
    source: str | Path,
    horizon: int = 4,
    value_head: bool = False,
    dtype: torch.dtype = torch.float32,
    head_kind: str = ParallelHeads.kind,
    shared_module: bool = True,
    packing: bool = True,
    head_block: str = "trunk",
) -> MtpForCausalLM:
    """Load the model to train, from what has heads (`load_wmtp`) or from any plain causal LM.

    Sequential heads take the weights of the sequential modules that a source ships; other heads leave them, which a
    warning says.

    Args:
        source: folder, GGUF file, or a name that transformers can fetch.
        horizon: number of heads; what has heads must have as many.
        value_head: whether the policy is to have one. A new one (values 0) is added where the source has none; one
            that is not wanted is dropped.
        dtype: of all parameters.
        head_kind: of the heads after the first, see `MtpConfig`; what has heads must have that kind.
        shared_module: of sequential heads, see `MtpConfig`; what has some must have it so. What ships several modules
            has one a depth.
        packing: whether it is to be given rows of several documents.
        head_block: of sequential heads, see `MtpConfig`.

    Raises:
        UserError: nothing there, incomplete or foreign weights, other heads, an architecture without heads, or one that
            lets packed documents see each other.
    """
    if not has_heads(source):
        shipped = find_shipped(source)
        causal_lm = _load_plain(source, dtype, shipped)
        if shipped is not None and head_kind == SequentialHeads.kind:
            if head_block != "trunk":
                raise UserError(f"head_block is {head_block}, and {source} ships modules of its own: set it to trunk")
            return wrap_with_modules(causal_lm, shipped, horizon, value_head, shared_module, packing)
        if shipped is not None:
            warn_unused(shipped)
        return MtpForCausalLM.wrap(causal_lm, horizon, value_head, head_kind, shared_module, None, packing, head_block)
    policy = load_wmtp(source, dtype)
    config = policy.config
    if config.horizon != horizon:
        raise UserError(
            f"{source} has {config.horizon} heads, but horizon is {horizon}: set horizon to {config.horizon}"
        )
    if config.head_kind != head_kind:
        raise UserError(
            f"{source} has heads of the kind {config.head_kind}, but head_kind is {head_kind}: "
            f"set head_kind to {config.head_kind}"
        )
    if head_kind == SequentialHeads.kind and config.shared_module != shared_module:
        raise UserError(
            f"{source} has {'one module for all depths' if config.shared_module else 'a module for each depth'}: "
            f"set shared_module to {str(config.shared_module).lower()}"
        )
    if head_kind == SequentialHeads.kind and config.native is None and config.head_block != head_block:
        raise UserError(
            f"{source} has a decoder layer of the kind {config.head_block} in its modules, but head_block is "
            f"{head_block}: set head_block to {config.head_block}"
        )
    if packing and not config.isolates_documents:
        raise UserError(f"{source} lets documents that are packed into a row see each other: set data.packing to false")
    if value_head and policy.value_head is None:
        policy.add_value_head()
    elif not value_head:
        policy.remove_value_head()
    return policy


def load_wmtp(source: str | Path, dtype: torch.dtype | None = None) -> MtpForCausalLM:
    """Load a model with all its heads as it was saved: a WMTP folder, or one of the published multi-token format.

    Args:
        source: the folder.
        dtype: of all parameters; None: as saved.

    Raises:
        UserError: nothing there, incomplete or foreign weights, or a plain model.
    """
    if consolidated.is_folder(source):
        return consolidated.load(Path(source), dtype)
    config = read_config(source)
    if not isinstance(config, MtpConfig):
        raise UserError(f"{source} is a plain {config.model_type} without heads: give a folder that training wrote")
    dtype = dtype or config.dtype or torch.float32
    policy: MtpForCausalLM
    if config.format_version == FORMAT:
        policy = load_weights(MtpForCausalLM, source, dtype)
    else:
        policy = load_first_format(source, dtype)
    return policy


def has_heads(source: str | Path) -> bool:
    """Return whether `load_wmtp` is the one to load it; it is a plain causal LM else.

    Raises:
        UserError: nothing there.
    """
    return consolidated.is_folder(source) or isinstance(read_config(source), MtpConfig)


def build_policy(
    trunk_config: dict[str, Any],
    vocab_size: int,
    horizon: int = 4,
    value_head: bool = False,
    seed: int = 0,
    head_kind: str = ParallelHeads.kind,
    shared_module: bool = True,
    packing: bool = True,
    head_block: str = "trunk",
) -> MtpForCausalLM:
    """Build a policy from scratch, in float32, with weights that depend on nothing but the arguments.

    Args:
        trunk_config: a transformers configuration as a dictionary: `model_type` and what differs from its defaults.
        vocab_size: V, of the tokenizer.
        horizon: number of heads.
        value_head: whether the policy carries a value head.
        seed: of the weights; the global random state is left as it was.
        head_kind: of the heads after the first, see `MtpConfig`.
        shared_module: of sequential heads, see `MtpConfig`.
        packing: whether it is to be given rows of several documents.
        head_block: of sequential heads, see `MtpConfig`.

    Raises:
        UserError: an unknown or missing `model_type`, an unknown key, a value that the architecture refuses.
    """
    model_type = trunk_config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"trunk: model_type is {model_type!r}: name one that transformers knows, such as 'llama'")
    defaults = CONFIG_MAPPING[model_type]()
    unknown = sorted(key for key in trunk_config if not (hasattr(defaults, key) or _is_read(model_type, key)))
    if unknown:
        raise UserError(f"trunk: {model_type} has no {', '.join(unknown)}: see {type(defaults).__name__} for its keys")
    if trunk_config.get("vocab_size", vocab_size) != vocab_size:
        raise UserError(
            f"trunk: vocab_size is {trunk_config['vocab_size']}, the tokenizer's is {vocab_size}: leave it out there"
        )
    # The defaults of these ids belong to some other tokenizer.
    special_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = AutoConfig.for_model(**{**special_ids, **trunk_config, "vocab_size": vocab_size})
            causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            return MtpForCausalLM.wrap(
                causal_lm, horizon, value_head, head_kind, shared_module, None, packing, head_block
            )
        except UserError:
            raise
        except Exception as error:  # each architecture refuses in a way of its own, some only when they are called
            reason = one_line(error)
            raise UserError(f"trunk: no {model_type} can be built so ({reason}): correct its values") from error


def _is_read(model_type: Any, key: str) -> bool:
    """Return whether a family reads a key that its configuration has no default for, such as Qwen3-MoE's head_dim."""
    family = CONFIG_MAPPING[model_type]
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    return f'getattr(config, "{key}"' in Path(inspect.getfile(MODEL_FOR_CAUSAL_LM_MAPPING[family])).read_text()


def load_causal_lm(source: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a plain causal LM: as it stands there, or trunk and head 0 of what has heads.

    Raises:
        UserError: nothing there, or incomplete or foreign weights.
    """
    if has_heads(source):
        return load_wmtp(source, dtype).unwrap()
    return _load_plain(source, dtype, find_shipped(source))


def _load_plain(source: str | Path, dtype: torch.dtype, shipped: ShippedModules | None) -> PreTrainedModel:
    """Load a plain causal LM without the modules that it ships."""
    elsewhere = None if shipped is None else shipped.pattern
    plain: PreTrainedModel = load_weights(AutoModelForCausalLM, source, dtype, elsewhere)
    return plain


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer, which is the kind that tells where in the text its tokens lie.

    Raises:
        UserError: nothing there, or a slow one.
    """
    place, gguf = resolve_source(source)
    fix = "put one there with save_pretrained"
    if not gguf and Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        raise UserError(f"no tokenizer in {source}: {fix}")  # transformers 5.0 would make one up
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **gguf)
    except Exception as error:  # tokenizers itself raises nothing narrower
        raise UserError(f"no usable tokenizer in {source} ({one_line(error)}): {fix}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {source} is a slow one: convert it and save its tokenizer.json there")
    return tokenizer
