"""The weights of rank 0 where DeepSpeed wants them, where the other ranks hold none of their own (see `skeleton`)."""

from collections.abc import Iterable
from typing import Any

from deepspeed import zero
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
    if config.get("zero_optimization", {}).get("stage", 0) == 3:
        _PartitioningInit(module=model, dtype=dtype, config_dict_or_path=config)
        for buffer in model.buffers():  # which DeepSpeed moves with whole parameters alone
            buffer.data = buffer.data.to(mesh.device)
        return
    for parameter in model.parameters():
        if parameter.is_meta:
            give_memory(parameter, dtype if parameter.is_floating_point() else parameter.dtype, mesh.device)


class _PartitioningInit(zero.Init):
    """ZeRO-3's own conversion, except that a parameter has memory from here on and no longer than it takes."""

    def _convert_to_zero_parameters(self, param_list: Iterable[nn.Parameter]) -> None:
        for parameter in param_list:
            dtype = self.dtype if parameter.is_floating_point() else parameter.dtype
            if parameter.is_meta:
                give_memory(parameter, dtype, self.local_device)
            elif not zero.partition_parameters.is_zero_param(parameter):
                parameter.data = parameter.data.to(dtype).contiguous()
            super()._convert_to_zero_parameters([parameter])
