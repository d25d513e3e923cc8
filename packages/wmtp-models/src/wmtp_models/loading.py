"""Models and tokenizers from folders, names and configurations."""

import os
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from wmtp_core import UserError
from wmtp_models.mtp import MtpConfig, MtpForCausalLM


def load_policy(
    source: str | Path, horizon: int = 4, value_head: bool = False, dtype: torch.dtype = torch.float32
) -> MtpForCausalLM:
    """The model to train, from a WMTP folder or from any plain causal LM.

    Args:
        source: folder, or a name that transformers can fetch.
        horizon: number of heads; a WMTP folder must have as many.
        value_head: whether the policy is to have one. A new one (values 0) is added where the source has none; one
            that is not wanted is dropped.
        dtype: of all parameters.

    Raises:
        UserError: nothing there, incomplete or foreign weights, another horizon, an architecture without heads.
    """
    config = read_config(source)
    if not isinstance(config, MtpConfig):
        return MtpForCausalLM.wrap(_load_weights(AutoModelForCausalLM, source, dtype), horizon, value_head)
    if config.horizon != horizon:
        raise UserError(
            f"{source} has {config.horizon} heads, but horizon is {horizon}: set horizon to {config.horizon}"
        )
    policy: MtpForCausalLM = _load_weights(MtpForCausalLM, source, dtype)
    if value_head and policy.value_head is None:
        policy.add_value_head()
    elif not value_head:
        policy.remove_value_head()
    return policy


def build_policy(
    trunk_config: dict[str, Any], vocab_size: int, horizon: int = 4, value_head: bool = False, seed: int = 0
) -> MtpForCausalLM:
    """A policy from scratch, in float32, with weights that depend on nothing but the arguments.

    Args:
        trunk_config: a transformers configuration as a dictionary: `model_type` and what differs from its defaults.
        vocab_size: V, of the tokenizer.
        horizon: number of heads.
        value_head: whether the policy carries a value head.
        seed: of the weights; the global random state is left as it was.

    Raises:
        UserError: an unknown or missing `model_type`, an unknown key, a value that the architecture refuses.
    """
    model_type = trunk_config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"trunk: model_type is {model_type!r}: name one that transformers knows, such as 'llama'")
    defaults = CONFIG_MAPPING[model_type]()
    unknown = sorted(key for key in trunk_config if not hasattr(defaults, key))
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
            return MtpForCausalLM.wrap(causal_lm, horizon, value_head)
        except UserError:
            raise
        except Exception as error:  # each architecture refuses in a way of its own, some only when they are called
            reason = _one_line(error)
            raise UserError(f"trunk: no {model_type} can be built so ({reason}): correct its values") from error


def load_causal_lm(source: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A plain causal LM: as it stands there, or trunk and head 0 of a WMTP folder.

    Raises:
        UserError: nothing there, or incomplete or foreign weights.
    """
    if isinstance(read_config(source), MtpConfig):
        policy: MtpForCausalLM = _load_weights(MtpForCausalLM, source, dtype)
        return policy.unwrap()
    return _load_weights(AutoModelForCausalLM, source, dtype)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer, which is the kind that tells where in the text its tokens lie.

    Raises:
        UserError: nothing there, or a slow one.
    """
    _require_folder(source)
    mend = "put one there with save_pretrained"
    if Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        raise UserError(f"no tokenizer in {source}: {mend}")  # transformers 5.0 would make one up
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # tokenizers itself raises nothing narrower
        raise UserError(f"no usable tokenizer in {source} ({_one_line(error)}): {mend}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"the tokenizer in {source} is a slow one: convert it and save its tokenizer.json there")
    return tokenizer


def read_config(source: str | Path) -> PreTrainedConfig:
    """The configuration in a folder or under a name.

    Raises:
        UserError: there is none, or of a type that transformers does not know.
    """
    _require_folder(source)
    try:
        return AutoConfig.from_pretrained(str(source))
    except Exception as error:  # each configuration class refuses in a way of its own
        raise UserError(
            f"no usable config.json in {source} ({_one_line(error)}): give a folder written by save_pretrained"
        ) from error


def _require_folder(source: str | Path) -> None:
    # What cannot be a name on a hub is meant as a folder, and is not worth asking the network for.
    is_path = isinstance(source, Path) or source.startswith((".", os.sep)) or source.count("/") > 1
    if is_path and not Path(source).is_dir():
        raise UserError(f"there is no folder {source}: check the path")


def _load_weights(model_class: Any, source: str | Path, dtype: torch.dtype) -> Any:
    """`from_pretrained`, except that a weight which is not used, not there or of another shape is an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what its report would warn of is refused here
    try:
        model, report = model_class.from_pretrained(
            str(source), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"the weights in {source} cannot be read ({_one_line(error)}): save them again") from error
    finally:
        logging.set_verbosity(verbosity)
    reshaped = {f"{name} ({list(found)}, not {list(wanted)})" for name, found, wanted in report["mismatched_keys"]}
    flaws = {
        "has weights of other shapes than its config.json says:": reshaped,
        "lacks weights that its config.json asks for:": report["missing_keys"],
        "has weights that its config.json knows no place for:": report["unexpected_keys"],
    }
    for flaw, weights in flaws.items():
        if weights:
            more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
            raise UserError(f"{source} {flaw} {min(weights)}{more}; give a complete checkpoint of one model")
    return model


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 240, placeholder=" …")
