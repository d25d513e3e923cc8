"""What is handed to torch's collectives, and what is held meanwhile."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from scaling.tensors import new_bytes

# How they are called, which kind they are, and which argument is the whole tensor.
_COLLECTIVES = {
    "all_reduce": ("all_reduce", "tensor"),
    "all_gather": ("all_gather", "tensor_list"),
    "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "reduce_scatter": ("reduce_scatter", "input_list"),
    "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "reduce": ("reduce", "tensor"),
    "broadcast": ("broadcast", "tensor"),
}


class Collectives:
    """Watches this process's collectives from now on."""

    def __init__(self) -> None:
        self.moved: Counter[str] = Counter()
        """Bytes of whole tensors by kind of collective."""
        self.held = 0
        """The most bytes of new tensors that were there while gradients were on their way."""
        self._before: dict[int, torch.UntypedStorage] = {}
        for name, (kind, whole) in _COLLECTIVES.items():
            setattr(dist, name, self._watched(getattr(dist, name), kind, whole))

    def begin(self, before: dict[int, torch.UntypedStorage]) -> None:
        """Count from 0; what is in `before` is not new."""
        self.moved.clear()
        self.held, self._before = 0, before

    def _watched(self, collective: Callable[..., Any], kind: str, whole: str) -> Callable[..., Any]:
        signature = inspect.signature(collective)

        @functools.wraps(collective)
        def watched(*args: Any, **kwargs: Any) -> Any:
            tensors = signature.bind(*args, **kwargs).arguments[whole]
            size = sum(tensor.nbytes for tensor in ([tensors] if isinstance(tensors, torch.Tensor) else tensors))
            self.moved[kind] += size
            if kind in ("all_reduce", "reduce_scatter") and size > 1000:  # not a norm
                self.held = max(self.held, new_bytes(self._before))
            return collective(*args, **kwargs)

        return watched
