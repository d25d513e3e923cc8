"""The call of a trunk's last layer, noted while the trunk runs: what parallel heads are called with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class LayerCall(NamedTuple):
    """What a layer was called with: hidden states, masks, rotary embeddings, positions, cache, as its trunk has them.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeat(self, layer: nn.Module, hidden_states: Tensor | None = None) -> Tensor:
        """Call another layer in the same way, on the same hidden states `[B, S, D]` or on others; returns its own."""
        args, kwargs = self.args, self.kwargs
        if hidden_states is not None and args:
            args = (hidden_states, *args[1:])
        elif hidden_states is not None:
            kwargs = kwargs | {"hidden_states": hidden_states}
        return layer_output(layer(*args, **kwargs))

    def detached(self) -> "LayerCall":
        """Return the same call, through which nothing learns."""
        return LayerCall(_detached(self.args), {name: _detached(value) for name, value in self.kwargs.items()})


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(map(_detached, value)) if type(value) is tuple else value


def layer_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden states `[B, S, D]` in what a decoder layer returns: some families return a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def capture_call(layer: nn.Module) -> Iterator[list[LayerCall]]:
    """Note every call of a layer in here. The list belongs to the caller, and nothing is kept elsewhere."""
    calls: list[LayerCall] = []
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(LayerCall(args, kwargs)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()
