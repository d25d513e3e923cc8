"""Where the host waits for an accelerator, counted on a CPU.

On an accelerator, work is queued: the host runs ahead until it asks for a value that is still being computed, or for a
shape that depends on one. Then it waits, and afterwards the device waits for the host. Which operations ask can be told
without an accelerator, because they are the same operations.

What lies on the device is told by descent: what was marked, what was made with an explicit `device=`, and all that was
computed from these. The rest (data on its way in, Adam's count of steps, random states) lies on the host in a real run
too, and reading that is free. Not seen: copies from and to the host that pass through `Tensor.to(device)` or `copy_`,
since on a CPU both ends are the same; waits inside a library's C++; and what the triton interpreter does in the place
of a kernel.
"""

import sys
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VALUES = {"_local_scalar_dense", "is_nonzero", "equal", "allclose"}
_SHAPES = {
    "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "bincount",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
_COPIES = ("cpu", "tolist", "numpy")
"""Methods of a tensor that copy it to the host, and on a CPU pass below the dispatcher."""
_FROM_DATA = ("tensor", "as_tensor", "asarray")
"""Functions that copy Python's numbers to a device, for which they wait: the memory is not page-locked."""
_MAKERS = (*_FROM_DATA, "empty", "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "randint")
"""What makes a tensor on the `device` that it is given."""
_SYNCHRONIZE = ((torch.cuda, "synchronize"), (torch.accelerator, "synchronize"))
_TORCH = str(Path(torch.__file__).parent)
_INTERPRETER = "/triton/runtime/interpreter.py"
_ROOTS = sorted({*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")}, key=len, reverse=True)


@dataclass(frozen=True)
class HostWait:
    """One wait of the host.

    Attributes:
        operation: what waits, such as `nonzero`, `_local_scalar_dense` (`item`, `float`, `bool`) or `tolist`.
        file: of the innermost frame outside torch, from its package on: `wmtp_train/step.py`.
        function: of that frame.
        line: of that frame.
    """

    operation: str
    file: str
    function: str
    line: int

    @property
    def place(self) -> str:
        """Where and what, without the line: `file function operation`."""
        return f"{self.file} {self.function} {self.operation}"

    def __str__(self) -> str:
        """Return `file:line function operation`."""
        return f"{self.file}:{self.line} {self.function} {self.operation}"


class HostWaits(TorchDispatchMode):
    """Counts host waits of what runs `with` it, its backward included.

    Args:
        device: parameters, batches, … that lie on the device.

    Attributes:
        found: the waits, in order.
    """

    def __init__(self, device: Iterable[Any] = ()) -> None:
        super().__init__()
        self.found: list[HostWait] = []
        self._marked: dict[int, StorageWeakRef] = {}  # a weak reference keeps a storage's address from another use
        self._patches = ExitStack()
        self.mark(device)

    def mark(self, what: Any) -> Any:
        """Take tensors, modules, dataclasses of tensors, or nested lists and dicts of them to be on the device."""
        for leaf in tree_leaves(list(what) if isinstance(what, Iterable) and not isinstance(what, Tensor) else what):
            if isinstance(leaf, Tensor):
                self._mark(leaf)
            elif isinstance(leaf, nn.Module):
                self.mark([*leaf.parameters(), *leaf.buffers()])
            elif hasattr(leaf, "__dataclass_fields__"):
                self.mark(list(vars(leaf).values()))
        return what

    def is_marked(self, *tensors: Any) -> bool:
        """Return whether any of them is a tensor on the device."""
        return any(isinstance(t, Tensor) and _storage(t)._cdata in self._marked for t in tensors)

    def note(self, operation: str, beyond: str = "") -> None:
        """Count a wait of the caller; frames of the file `beyond` only hand it on."""
        frame: Any = sys._getframe(1)
        caller = None
        while frame is not None:
            path = frame.f_code.co_filename
            if path.endswith(_INTERPRETER):
                return
            if caller is None and not path.startswith(_TORCH) and path not in (__file__, beyond):
                caller = frame
            frame = frame.f_back
        if caller is not None:
            code = caller.f_code
            self.found.append(HostWait(operation, _short(code.co_filename), code.co_qualname, caller.f_lineno))

    def __enter__(self) -> Self:
        """Begin to count."""
        for name in _COPIES:
            self._patch(Tensor, name, self._copying)
        self._patch(Tensor, "to", self._moving)
        for name in _MAKERS:
            self._patch(torch, name, self._making)
        for owner, name in _SYNCHRONIZE:
            self._patch(owner, name, self._synchronizing)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; note it where it waits, and mark what it makes of marked tensors."""
        kwargs = kwargs or {}
        name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
        on_device = self.is_marked(*leaves)
        if name == "barrier" or (on_device and self._waits(name, args, kwargs)):
            self.note(name)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if on_device:
            for tensor in [*outputs, *_written(func, args, kwargs)]:
                self._mark(tensor)
        return result

    def _waits(self, name: str, args: Any, kwargs: Any) -> bool:
        """Return whether an operation on tensors of the device waits for it."""
        if name == "repeat_interleave":
            return len(args) == 1 and kwargs.get("output_size") is None
        if name in _INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            # A single value is filled in under a mask, which nobody counts.
            counted = mask and not (name.startswith("index_put") and args[2].numel() == 1 and not any(args[3:]))
            return counted or not all(self.is_marked(index) for index in indices)  # a list of numbers is copied first
        return name in _VALUES or name in _SHAPES

    def _mark(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        self._marked[storage._cdata] = StorageWeakRef(storage)

    def _patch(self, owner: Any, name: str, watch: Callable[[str, Any, Any, Any], Any]) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            return watch(name, original, args, kwargs)

        self._patches.enter_context(patch.object(owner, name, watched))

    def _copying(self, name: str, original: Any, args: Any, kwargs: Any) -> Any:
        if not self.is_marked(args[0]):
            return original(*args, **kwargs)
        self.note(name)
        if name != "cpu":
            return original(*args, **kwargs)
        copy = args[0].clone()  # as from an accelerator: reading it is free
        self._marked.pop(_storage(copy)._cdata)
        return copy

    def _moving(self, name: str, original: Any, args: Any, kwargs: Any) -> Any:
        if (args[1:2] == ("cpu",) or kwargs.get("device") == "cpu") and self.is_marked(args[0]):
            self.note("to cpu")
        return original(*args, **kwargs)

    def _making(self, name: str, original: Any, args: Any, kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if kwargs.get("device", "cpu") not in (None, "cpu"):
            self._mark(made)
            if name in _FROM_DATA and not isinstance(args[0] if args else kwargs.get("data"), Tensor):
                self.note(name)
        return made

    def _synchronizing(self, name: str, original: Any, args: Any, kwargs: Any) -> None:
        self.note(name)  # and nothing else: there may be no accelerator


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation writes into."""
    arguments = func._schema.arguments
    given = [(a, args[i] if i < len(args) else kwargs.get(a.name)) for i, a in enumerate(arguments)]
    written = [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]
    return [leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _short(path: str) -> str:
    """Return a source file's path from its package on."""
    root = next((root for root in _ROOTS if root and path.startswith(f"{root}/")), None)
    return path if root is None else path[len(root) + 1 :]
