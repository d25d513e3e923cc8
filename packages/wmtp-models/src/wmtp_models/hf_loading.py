"""Where models come from: folders, names on a hub and GGUF files, read through transformers."""

import importlib.util
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging

from wmtp_core import UserError

_GGUF_NEEDS = ("gguf", "accelerate")


def resolve_source(source: str | Path) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` expects: a folder or name, and for GGUF which file of the folder.

    Args:
        source: folder, name on a hub, `*.gguf` file, or a folder with one of these and no config.json.

    Raises:
        UserError: what can only be meant as a path is not there; several GGUF files; no package to read them with.
    """
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise UserError(f"{source} holds {len(files)} GGUF files: name one of them, such as {files[0]}")
        path = files[0] if files else path
    if path.suffix == ".gguf" and path.is_file():
        for package in _GGUF_NEEDS:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{path} is a GGUF file, which needs the package {package}: pip install {package}")
        return str(path.parent), {"gguf_file": path.name}
    # What cannot be a name on a hub is meant as a folder, and is not worth asking the network for.
    is_path = isinstance(source, Path) or source.startswith((".", os.sep)) or source.count("/") > 1
    if is_path and not path.is_dir():
        raise UserError(f"there is no folder {source}: check the path")
    return str(source), {}


def read_config(source: str | Path) -> PreTrainedConfig:
    """Read the configuration in a folder, under a name or in a GGUF file.

    Raises:
        UserError: there is none, or of a type that transformers does not know.
    """
    place, gguf = resolve_source(source)
    try:
        return AutoConfig.from_pretrained(place, **gguf)
    except Exception as error:  # each configuration class refuses in a way of its own
        raise UserError(
            f"no usable config.json in {source} ({one_line(error)}): give a folder written by save_pretrained"
        ) from error


def load_weights(
    model_class: Any, source: str | Path, dtype: torch.dtype, elsewhere: re.Pattern[str] | None = None
) -> Any:
    """Call `from_pretrained` of a folder, name or GGUF file, complete; see `from_pretrained_strict`.

    Raises:
        UserError: see `from_pretrained_strict`.
    """
    place, gguf = resolve_source(source)
    model = from_pretrained_strict(model_class, place, source, "config.json", elsewhere, dtype=dtype, **gguf)
    return _unquantized(model) if gguf else model


def from_pretrained_strict(
    model_class: Any,
    place: str | None,
    source: str | Path,
    described_in: str,
    elsewhere: re.Pattern[str] | None = None,
    **options: Any,
) -> Any:
    """Call `from_pretrained`, except that a weight which is not used, not there or of another shape is an error.

    Args:
        model_class: whose `from_pretrained` it is.
        place: where that looks, or None with a `config` and a `state_dict` among the options.
        source: what an error calls it.
        described_in: the file that says what weights there must be.
        elsewhere: the names of weights that are not for this model, and may be there.
        options: of `from_pretrained`.

    Raises:
        UserError: such a weight, or files that cannot be read.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what its report would warn of is refused here
    try:
        model, report = model_class.from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"the weights in {source} cannot be read ({one_line(error)}): save them again") from error
    finally:
        logging.set_verbosity(verbosity)
    reshaped = {f"{name} ({list(found)}, not {list(wanted)})" for name, found, wanted in report["mismatched_keys"]}
    flaws = {
        f"has weights of other shapes than its {described_in} says:": reshaped,
        f"lacks weights that its {described_in} asks for:": report["missing_keys"],
        f"has weights that its {described_in} knows no place for:": {
            name for name in report["unexpected_keys"] if elsewhere is None or not elsewhere.search(name)
        },
    }
    for flaw, weights in flaws.items():
        if weights:
            more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
            raise UserError(f"{source} {flaw} {min(weights)}{more}; give a complete checkpoint of one model")
    return model


def _unquantized(model: Any) -> Any:
    """Return the same model without the marks of its former quantization, with which it could not be saved."""
    config = model.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def one_line(error: Exception) -> str:
    """Return what an error says, short enough to stand inside another line."""
    return textwrap.shorten(str(error) or type(error).__name__, 240, placeholder=" …")
