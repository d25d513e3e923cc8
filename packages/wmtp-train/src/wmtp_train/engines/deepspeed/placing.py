"""The weights of rank 0 where DeepSpeed wants them, where the other ranks hold none of their own (see `skeleton`)."""

from collections.abc import Iterable
from typing import Any

import torch
from deepspeed import zero
from deepspeed.runtime.keep_in_fp32 import keep_in_fp32_pattern
from torch import nn

from wmtp_train.engines.deepspeed.config import parameter_dtype
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.skeleton import give_memory


def place_parameters(model: nn.Module, config: dict[str, Any], mesh: Mesh) -> None:
    """Prepare a model for `deepspeed.initialize`, if some rank has parameters without values. Every rank must call it.

    At stage 3 each parameter is sent by rank 0 and cut into the ranks' parts, one after the other. At the other stages
    a rank makes room for the whole on its device, and DeepSpeed sends it.

    Args:
        model: whole on rank 0.
        config: DeepSpeed's.
        mesh: the processes.
    """
    if not any(mesh.all_gather_object(any(parameter.is_meta for parameter in model.parameters()))):
        return
    dtype = parameter_dtype(config)
    pattern = keep_in_fp32_pattern(model, None, dtype)
    kept = {
        id(parameter) for name, parameter in model.named_parameters() if pattern is not None and pattern.search(name)
    }
    if config.get("zero_optimization", {}).get("stage", 0) == 3:
        _PartitioningInit(kept, module=model, dtype=dtype, config_dict_or_path=config)
        return
    for parameter in model.parameters():
        if parameter.is_meta:
            give_memory(parameter, parameter.dtype if id(parameter) in kept else dtype, mesh.device)


class _PartitioningInit(zero.Init):
    """ZeRO-3's own conversion, except that a parameter has memory from here on and no longer than it takes."""

    def __init__(self, kept: set[int], dtype: torch.dtype, **how: Any) -> None:
        self._kept, self._dtype = kept, dtype
        super().__init__(dtype=dtype, **how)

    def _convert_to_zero_parameters(self, param_list: Iterable[nn.Parameter]) -> None:
        for parameter in param_list:
            dtype = parameter.dtype if id(parameter) in self._kept else self._dtype
            if parameter.is_meta:
                give_memory(parameter, dtype, self.local_device)
            elif not zero.partition_parameters.is_zero_param(parameter):
                parameter.data = parameter.data.to(dtype)
            super()._convert_to_zero_parameters([parameter])
