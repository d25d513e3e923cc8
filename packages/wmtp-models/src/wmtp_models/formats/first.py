"""The first format of a saved WMTP folder, in which the heads stood inside the trunk's last layer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from wmtp_models.config import FORMAT, MtpConfig
from wmtp_models.heads import ParallelHeads
from wmtp_models.heads.medusa import MedusaHeads
from wmtp_models.hf_loading import load_weights
from wmtp_models.policy import MtpForCausalLM


def load_first_format(source: str | Path, dtype: torch.dtype) -> MtpForCausalLM:
    """Load a folder of the first format.

    Args:
        source: the folder.
        dtype: of all parameters.

    Raises:
        UserError: weights are missing, foreign (as where both formats are mixed) or unreadable.
    """
    first: _FirstFormat = load_weights(_FirstFormat, source, dtype)
    return first.in_current_format()


class _FirstFormat(MtpForCausalLM):
    """A model whose modules stand where the first format had them.

    New names alone would not do: transformers saves the experts of a trunk's layers one by one and stacks them again as
    it loads, by rules for the trunk's names, under which the heads were.
    """

    def __init__(self, config: MtpConfig) -> None:
        config.format_version = FORMAT
        super().__init__(config)
        last = nn.Module()
        last.heads = nn.ModuleList([self.trunk.last_layer])
        if isinstance(self.heads, ParallelHeads):
            last.heads.extend(self.heads.layers)
            self.heads.layers = nn.ModuleList()
        elif isinstance(self.heads, MedusaHeads):
            self.state_heads = self.heads.blocks
            self.heads.blocks = nn.ModuleList()
        self.trunk.layers[-1] = last

    def in_current_format(self) -> MtpForCausalLM:
        """Put every module in its place and return the same model as an `MtpForCausalLM`."""
        last: Any = self.trunk.last_layer
        head_0, *later = last.heads
        self.trunk.layers[-1] = head_0
        if isinstance(self.heads, ParallelHeads):
            self.heads.layers = nn.ModuleList(later)
        elif isinstance(self.heads, MedusaHeads):
            self.heads.blocks = self.state_heads
            del self.state_heads
        self.__class__ = MtpForCausalLM
        return self
