"""A model on every rank, of which rank 0 alone has built and read the weights.

Rank 0 sends what there is beside the parameters (classes, configuration, buffers); the others put parameters on the
meta device, which have a shape and no memory. The engine then hands out values, parameter by parameter, so that a node
never holds the model once for each of its processes.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.mesh import Mesh


def build_on_rank0(build: Callable[[], MtpForCausalLM], mesh: Mesh, what: str) -> MtpForCausalLM:
    """Return the model that rank 0 builds, without values on the other ranks. Every rank must call it.

    Args:
        build: builds it.
        mesh: the processes.
        what: see `run_on_all_ranks`.

    Raises:
        UserError: as `build` does, on all ranks.
    """

    def build_and_pack() -> tuple[MtpForCausalLM | None, bytes | None]:
        if not mesh.is_first:
            return None, None
        policy = build()
        try:
            return policy, pack_skeleton(policy)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UserError(
                f"the model cannot be sent to the other processes ({error}): its code holds what pickle does not know; "
                "train it with one process"
            ) from error

    policy, mine = run_on_all_ranks(mesh, build_and_pack, what, START_AGAIN)
    skeleton = mesh.broadcast_object(mine)
    return policy or unpack_skeleton(skeleton)


def receive_parameters(model: nn.Module, mesh: Mesh) -> None:
    """Move a model to the device, with rank 0's parameters on every rank. Every rank must call it."""
    for parameter in model.parameters():
        if parameter.is_meta:
            give_memory(parameter, parameter.dtype, mesh.device)
    model.to(mesh.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
        mesh.broadcast(parameter.data)


def give_memory(parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Give a parameter of the meta device memory, of any content; it stays the same object."""
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    torch.utils.swap_tensors(parameter, nn.Parameter(values, requires_grad=parameter.requires_grad))


def pack_skeleton(model: nn.Module) -> bytes:
    """Pickle a model without the values of its parameters; tied parameters stay tied."""
    file = io.BytesIO()
    pickler = _SkeletonPickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(model)
    return file.getvalue()


def unpack_skeleton(packed: bytes) -> Any:
    """Return the model with its parameters on the meta device."""
    return _SkeletonUnpickler(io.BytesIO(packed)).load()


class _SkeletonPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, nn.Parameter):
            return id(obj), tuple(obj.shape), obj.dtype, obj.requires_grad
        return None


class _SkeletonUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._parameters: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: Any) -> nn.Parameter:
        identity, shape, dtype, learns = pid
        if identity not in self._parameters:
            values = torch.empty(shape, dtype=dtype, device="meta")
            self._parameters[identity] = nn.Parameter(values, requires_grad=learns)
        return self._parameters[identity]
