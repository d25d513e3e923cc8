"""What the decoder layers of shipped modules are: layers of the trunk's class, built from its configuration."""

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from wmtp_core import UserError
from wmtp_models.trunk.parts import TrunkParts


@dataclass(frozen=True)
class NativeModules:
    """How a source names and builds the modules that it ships; kept in an `MtpConfig` as a dictionary.

    Attributes:
        layout: a name in `LAYOUTS`.
        attention: the kind of attention in their blocks, as the trunk's `layer_types` name it; None: the trunk has but
            one.
        sparse: their blocks are mixtures of experts, where the trunk has both kinds.
        stacked: the source has a layer's experts in one tensor, as transformers has them.
        text_only: the source is a model of more than text, of which the rest was left.
        copies: which parts of the trunk every module holds once more: `embedding`, `unembedding`.
    """

    layout: str
    attention: str | None = None
    sparse: bool = False
    stacked: bool = False
    text_only: bool = False
    copies: list[str] = field(default_factory=list)

    def block_config(self, trunk: PreTrainedConfig, count: int) -> Any:
        """Return the configuration of a decoder whose layers are the blocks of `count` modules."""
        config = copy.deepcopy(trunk)
        changes: dict[str, Any] = {
            "num_hidden_layers": count,
            "layer_types": [self.attention] * count,
            "mlp_layer_types": ["sparse" if self.sparse else "dense"] * count,
            "first_k_dense_replace": 0 if self.sparse else count,
        }
        for name, value in changes.items():
            if getattr(config, name, None) is not None:
                setattr(config, name, value)
        return config

    def build_blocks(self, trunk: TrunkParts, count: int) -> list[nn.Module]:
        """Return new blocks, of the trunk's device and dtype."""
        config = self.block_config(trunk.causal_lm.config, count)
        build: Any = type(trunk.last_layer)
        weight = trunk.weight
        return [build(config, index).to(device=weight.device, dtype=weight.dtype) for index in range(count)]

    def called_as(self, trunk: PreTrainedConfig) -> int:
        """Return the last of the trunk's layers that has their kind of attention, and so is called as they are.

        Raises:
            UserError: there is none.
        """
        kinds = getattr(trunk, "layer_types", None)
        if kinds is None:
            return -1
        if self.attention not in kinds:
            raise UserError(
                f"the modules that the {trunk.model_type} ships have {self.attention}, which none of its layers has: "
                "set model.head_kind to layer"
            )
        return max(index for index, kind in enumerate(kinds) if kind == self.attention)
