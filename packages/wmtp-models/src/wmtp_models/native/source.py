"""The modules in a source's files: which there are, and what is in them."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from wmtp_core import UserError
from wmtp_models.hf_loading import one_line, read_config, resolve_source
from wmtp_models.native.blocks import NativeModules
from wmtp_models.native.layouts import LAYOUTS, find_layout

# Where a family's configuration has no key for the attention of its modules, and its trunk has more than one kind.
_ATTENTION = {
    "exaone_moe": "sliding_attention",
    "mimo_v2_flash": "sliding_attention",
    "qwen3_next": "full_attention",
    "qwen3_5_text": "full_attention",
    "qwen3_5_moe_text": "full_attention",
}
MODULE_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
# What no plain decoder layer has: a layer too many without it is a checkpoint of another model.
_MARK = re.compile(r"model\.layers\.(\d+)\.(eh_proj|enorm|hnorm|shared_head)\.")


@dataclass(frozen=True)
class ShippedModules:
    """The sequential modules that a source ships.

    Attributes:
        source: which.
        config: the source's configuration, of its text part where there are others.
        text_only: there are.
        files: the file of each of their tensors.
    """

    source: str | Path
    config: PreTrainedConfig
    text_only: bool
    files: dict[str, str]

    @property
    def pattern(self) -> re.Pattern[str]:
        """What their tensors are called: what a plain causal LM of this configuration has no place for."""
        return _pattern(self.files, self.config.num_hidden_layers)

    @property
    def layout(self) -> str | None:
        """The name of their layout, or None where that is none that is known here."""
        return find_layout(self.files, self.config.num_hidden_layers)

    def describe(self) -> tuple[NativeModules, int]:
        """Return how they are built, and how many there are.

        Raises:
            UserError: this cannot be told, or they are not alike.
        """
        if getattr(self.config, "quantization_config", None) is not None:
            raise self.cannot_use("they are quantized, and could not be saved as they came")
        found = self.layout
        if found is None:
            raise self.cannot_use(f"they are named in a way that is not known here ({min(self.files)} is one)")
        layout, layers = LAYOUTS[found], self.config.num_hidden_layers
        count = layout.count(self.files, layers)
        parts = [{layout.rename(name, depth, layers) or "" for name in self.files} for depth in range(count)]
        sparse = {any(part.startswith("block.mlp.experts.") for part in module) for module in parts}
        copies = {tuple(sorted(module & {"embedding", "unembedding"})) for module in parts}
        if len(sparse) > 1 or len(copies) > 1:
            raise self.cannot_use("they are not alike")
        stacked = any(name.endswith(".mlp.experts.gate_up_proj") for name in self.files)
        attention = self._attention()
        return NativeModules(found, attention, sparse.pop(), stacked, self.text_only, list(copies.pop())), count

    def read(self) -> dict[str, Tensor]:
        """Return their tensors under the names that they have there.

        Raises:
            UserError: a file cannot be read.
        """
        place, _ = resolve_source(self.source)
        tensors: dict[str, Tensor] = {}
        for file in sorted(set(self.files.values())):
            try:
                with safe_open(str(cached_file(place, file)), framework="pt") as opened:
                    tensors |= {name: opened.get_tensor(name) for name in self.files if self.files[name] == file}
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} in {self.source} cannot be read ({one_line(error)}): copy it again") from error
        return tensors

    def cannot_use(self, reason: str) -> UserError:
        """Return the error that says why they cannot be heads."""
        return UserError(
            f"the sequential modules that {self.source} ships cannot be used: {reason}; "
            "set model.head_kind to layer, which trains heads of its own and drops them"
        )

    def _attention(self) -> str | None:
        kinds = getattr(self.config, "layer_types", None)
        if kinds is None:
            return None
        only = kinds[0] if len(set(kinds)) == 1 else _ATTENTION.get(self.config.model_type)
        said = getattr(self.config, "mtp_layer_types", None) or [only]
        if said[0] is None:
            raise self.cannot_use(
                f"config.json does not say which attention they have (add mtp_layer_types to it, such as {kinds[:1]})"
            )
        if len(set(said)) > 1:
            raise self.cannot_use("they are not alike")
        return str(said[0])


def find_shipped(source: str | Path) -> ShippedModules | None:
    """Return the sequential modules that a plain causal LM comes with; None: it has none.

    Args:
        source: a folder or a name; one without safetensors, such as a GGUF file, has none that could be read.

    Raises:
        UserError: no usable config.json, or an unreadable list of tensors.
    """
    place, gguf = resolve_source(source)
    whole = read_config(source)
    config = whole.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    files = {} if gguf else _tensor_files(place, source)
    if not files and (said := [name for name in MODULE_COUNTS if getattr(config, name, None)]) and is_first_process():
        print(
            f"warning: {source} may ship sequential modules (its {said[0]} is {getattr(config, said[0])}), which are "
            "read from safetensors alone: they are not used, and will not be saved",
            file=sys.stderr,
        )
    pattern = _pattern(files, layers) if isinstance(layers, int) else re.compile("(?!)")
    theirs = {name: file for name, file in files.items() if pattern.search(name)}
    return ShippedModules(source, config, config is not whole, theirs) if theirs else None


def is_first_process() -> bool:
    """Return whether this is the process that says what concerns all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _pattern(names: Iterable[str], trunk_layers: int) -> re.Pattern[str]:
    """Return what matches the names of modules: all with `mtp`, and layers after the trunk's last that are modules."""
    numbers = {int(found[1]) for name in names if (found := _MARK.match(name))}
    later = "|".join(str(number) for number in sorted(numbers) if number >= trunk_layers)
    return re.compile(r"(^|\.)mtp[._]" + (rf"|^model\.layers\.({later})\." if later else ""))


def _tensor_files(place: str, source: str | Path) -> dict[str, str]:
    """Return the file of each tensor of a folder or name."""
    quiet: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        if single := cached_file(place, SAFE_WEIGHTS_NAME, **quiet):
            with safe_open(single, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), SAFE_WEIGHTS_NAME)
        if index := cached_file(place, SAFE_WEIGHTS_INDEX_NAME, **quiet):
            weight_map: dict[str, str] = json.loads(Path(index).read_text())["weight_map"]
            return weight_map
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the weights in {source} cannot be read ({one_line(error)}): save them again") from error
    return {}
